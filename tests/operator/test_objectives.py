"""When `SLOMet` turns: on what many requests prove, never on chance, and not back and forth around the percentile."""

import random

import pytest
from msgspec.structs import replace

from fleets import histogram, later, load, policy, replica, seen, smartspec
from smartspec_operator import status
from smartspec_operator.fleet import Attainment
from smartspec_operator.objectives import slo_met
from smartspec_operator.reported import Condition, Status
from smartspec_operator.world import ScalingDecision


def judged(before: str | None, *attained: Attainment, percentile: int = 95) -> str | None:
    """The status of `SLOMet` after *before*."""
    old = Status() if before is None else Status(conditions=(Condition("SLOMet", before, "Before", "as it was"),))
    owner = replace(smartspec(slo={"ttftSeconds": 1.0, "tpotSeconds": 0.05, "percentile": percentile}), status=old)
    found = slo_met(owner, attained)
    return None if found is None else found.status


@pytest.mark.parametrize(
    ("before", "share", "requests", "percentile", "expected"),
    [
        (None, 0.0, 19, 95, None),
        (None, 0.951, 20, 95, "True"),
        (None, 0.949, 20, 95, "False"),
        ("True", 0.0, 19, 95, "True"),
        ("True", 0.941, 1000, 95, "True"),
        ("True", 0.939, 1000, 95, "False"),
        ("False", 1.0, 19, 95, "False"),
        ("False", 0.959, 1000, 95, "False"),
        ("False", 0.961, 1000, 95, "True"),
        ("False", 0.996, 1000, 99, "True"),
    ],
)
def test_a_turn_needs_requests_and_a_distance(
    before: str | None, share: float, requests: int, percentile: int, expected: str | None
) -> None:
    """Twenty of them, and a point of the percentile; near its end half of what is left."""
    assert judged(before, Attainment(share, requests), percentile=percentile) == expected


@pytest.mark.parametrize("before", [None, "True", "False"])
def test_what_nobody_asks_for_stays_as_it_was(before: str | None) -> None:
    """No request proves nothing."""
    assert judged(before) == before


def test_one_objective_is_enough_to_miss_and_not_to_attain() -> None:
    """Few requests of the other kind hide no miss, and prove no success."""
    good, bad, few = Attainment(1.0, 100), Attainment(0.5, 100), Attainment(0.5, 3)
    assert judged("True", bad, few) == "False"
    assert judged("False", good, few) == "False"
    assert judged("False", good, good) == "True"


def test_three_requests_in_a_window_cost_hardly_a_write() -> None:
    """One of them late, now and then: neither the condition nor the share makes a write of it."""
    chance, owner = random.Random(7), smartspec(slo={"tpotSeconds": 0.05})
    scale, now, writes, turns = ScalingDecision(desired=1, replicas=1), Status(), 0, 0
    for tick in range(300):
        late = [chance.random() < 0.05 for _ in range(chance.choice((0, 2, 3, 4)))]
        report = load(
            tokens_per_second=10.0, generation=1, tpot=histogram(*(0.2 if is_late else 0.01 for is_late in late))
        )
        before, owner = now, replace(owner, status=now)
        now = status.compute(owner, seen(replica("a", report)), policy(), scale, now=later(2 * tick))
        writes += now != before
        turns += now.condition("SLOMet") != before.condition("SLOMet")
    assert (turns, writes <= 6) == (0, True), writes
