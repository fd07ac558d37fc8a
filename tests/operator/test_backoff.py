"""How long what was refused is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartspec_operator.backoff import (
    ELSEWHERE_SECONDS,
    FIRST_SECONDS,
    LONGEST_SECONDS,
    Refusal,
    refused,
)

HERE = ("u/1", "d/1")


def waits(reason: str, count: int) -> list[float]:
    """How long each of *count* refusals in a row is believed."""
    found, last, now = [], None, 1000.0
    for _ in range(count):
        last = refused(reason, HERE, last, now)
        found.append(last.until - now)
        now = last.until
    return found


@pytest.mark.parametrize(
    ("reason", "longest"),
    [("InvalidSpec", LONGEST_SECONDS), ("Conflict", ELSEWHERE_SECONDS), ("ApplyFailed", ELSEWHERE_SECONDS)],
)
def test_each_refusal_is_believed_twice_as_long_up_to_a_bound(reason: str, longest: float) -> None:
    """A few tries in the first minute, then one every few minutes; where others may help, more often."""
    found = waits(reason, 40)
    assert found[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert found[-1] == longest
    assert found == sorted(found)


@given(times=st.integers(1, 2000), reason=st.sampled_from(["InvalidSpec", "Conflict"]), where=st.tuples(st.text()))
def test_what_changed_begins_anew(times: int, reason: str, where: tuple[str, ...]) -> None:
    """Another reason, or other circumstances: the first wait again."""
    before = Refusal("ApplyFailed", HERE, times, 5000.0)
    assert refused(reason, where, before, 100.0) == Refusal(reason, where, 1, 100.0 + FIRST_SECONDS)
