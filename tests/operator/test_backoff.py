"""How long what was refused is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartspec_operator.backoff import (
    CALM_SECONDS,
    ELSEWHERE_SECONDS,
    FIRST_SECONDS,
    LONGEST_SECONDS,
    Contest,
    Refusal,
    contested,
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


def test_who_changes_the_same_back_is_let_be_for_longer_each_time() -> None:
    """Up to a bound; anew after a calm, and for another path."""
    last: Contest | None = None
    now, found = 1000.0, []
    for _ in range(9):
        last = contested(frozenset({"a"}), last, now)
        found.append(last.wait_seconds)
        now = last.until + 1
    assert found == [2, 4, 8, 16, 32, 64, 128, LONGEST_SECONDS, LONGEST_SECONDS]
    assert last is not None
    assert contested(frozenset({"b"}), last, now).times == 1
    assert contested(frozenset({"a"}), last, last.until + CALM_SECONDS).times == 1


def test_only_more_of_the_same_is_let_be() -> None:
    """Another path is repaired at once, and so is the number of replicas."""
    contest = contested(frozenset({"a", "b", "spec.replicas"}), None, 0.0)
    assert contest.covers(frozenset({"a"}))
    assert not contest.covers(frozenset({"a", "c"}))
    assert not contest.covers(frozenset({"a", "spec.replicas"}))
    assert not contest.covers(frozenset())
