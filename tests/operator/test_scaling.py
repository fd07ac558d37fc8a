"""Stage two: when replicas come and go, and every reason why they stay."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fleets import NOW, histogram, history, later, linear_priors, load, pending, policy, replica, seen, smartspec
from smartspec.policy.capacity import RequestLengths, operating_point
from smartspec_operator import scaling
from smartspec_operator.reported import ScalingRecord
from smartspec_operator.world import (
    Failure,
    History,
    Observation,
    PolicyDecision,
    Problem,
    Recommendation,
    Replica,
    ScalingDecision,
    Timing,
    timestamp,
)

PRIORS = linear_priors()  # a replica of it makes some 940 tokens a second with 64 requests of 50 + 100 tokens
AUTOSCALED: dict[str, Any] = {"autoscaling": {"minReplicas": 1, "maxReplicas": 6}}


def long_at(replicas: int) -> History:
    """A history in which so many replicas were decided, and recommended, long ago."""
    record = ScalingRecord(time=timestamp(later(-7200)), from_replicas=1, to_replicas=replicas, reason="Demand")
    return history(record, recommendations=(Recommendation(later(-7200), replicas),))


def decide(
    world: Observation,
    past: History,
    *,
    chosen: PolicyDecision | None = None,
    after: float = 0.0,
    **spec: Any,
) -> ScalingDecision:
    """Scale with these autoscaling bounds unless *spec* says otherwise."""
    return scaling.decide(
        smartspec(**(spec or AUTOSCALED)), world, past, chosen or policy(PRIORS), now=later(after), timing=Timing()
    )


def fleet(size: int, tokens_per_second: float, **more: Any) -> Observation:
    """So many ready replicas, each making *tokens_per_second*."""
    return seen(*(replica(f"r{i}", load(tokens_per_second=tokens_per_second, **more)) for i in range(size)))


def test_demand_beyond_what_replicas_make_adds_as_many_as_it_takes() -> None:
    """Demand over 85 % of the predicted capacity is met at once by enough replicas, and recorded with its numbers."""
    decision = decide(fleet(2, 850.0, requests_per_second=15.0), long_at(2))
    assert decision.desired == 4
    record = decision.history[-1]
    assert (record.from_replicas, record.to_replicas, record.reason) == (2, 4, "Demand")
    assert record.demand_tokens_per_second == pytest.approx(3000, rel=0.01)
    assert record.predicted_tokens_per_second == pytest.approx(940, rel=0.1)
    assert record.predicted_concurrency == 64


def test_one_decision_at_most_doubles() -> None:
    """However large the demand, it is known better once the first replicas have come."""
    assert decide(fleet(1, 900.0, requests_per_second=500.0), long_at(1)).desired == 2


def test_replicas_that_start_count_as_supply() -> None:
    """While the ones added last are starting, the same demand adds no more."""
    world = seen(*fleet(2, 850.0, requests_per_second=15.0).replicas, pending("r2"), pending("r3"))
    decision = decide(world, long_at(4))
    assert decision.desired == 4


def test_a_queue_longer_than_what_runs_asks_for_one_more() -> None:
    """Without any time model the queue itself speaks."""
    queue = {"num_requests_running": 8, "num_requests_waiting": 9, "longest_wait_seconds": 3.0}
    world = fleet(1, 0.0, requests_per_second=0.0, **queue)
    decision = decide(world, long_at(1), chosen=policy())
    assert (decision.desired, decision.reason) == (2, "Queue")


def test_requests_that_wait_for_the_next_step_are_no_queue() -> None:
    """Two that came together to an idle replica have waited for a moment; what one stream makes is no capacity."""
    slow = {"requests_per_second": 0.5, "num_requests_running": 0, "num_requests_waiting": 2}
    assert decide(fleet(1, 50.0, **slow, longest_wait_seconds=0.04), long_at(1)).desired == 1
    assert decide(fleet(1, 50.0, **slow, longest_wait_seconds=2.0), long_at(1)).desired == 2


def test_a_step_of_load_is_seen_before_the_window_is_full_of_it() -> None:
    """What came in the last seconds counts while requests wait for others, whose number need not exceed theirs."""
    step = {"requests_per_second": 4.0, "recent_requests_per_second": 9.0, "num_requests_running": 12}
    answers = [decide(fleet(1, 400.0, **step, num_requests_waiting=waiting), long_at(1)) for waiting in (1, 8)]
    assert [(answer.desired, answer.reason) for answer in answers] == [(1, "Steady"), (2, "Demand")]
    assert answers[1].history[-1].demand_tokens_per_second == pytest.approx(900 + 800 / 30, rel=0.01)


def test_missed_objectives_add_only_when_the_policy_has_nothing_left() -> None:
    """Stage one goes first: a missed objective alone adds nobody."""
    world = fleet(1, 300.0, tpot=load().tpot)
    assert decide(world, long_at(1)).desired == 1
    exhausted = decide(world, long_at(1), chosen=policy(PRIORS, exhausted=True))
    assert (exhausted.desired, exhausted.reason) == (2, "Objectives")


def test_spare_replicas_go_only_after_the_whole_window() -> None:
    """Less demand removes a replica when the load has passed on fewer for all of the window, not before."""
    past, idle = long_at(2), fleet(2, 0.0)
    first = decide(idle, past)
    assert first.desired == 2
    past = history(*first.history, recommendations=first.recommendations)
    assert decide(idle, past, after=299).desired == 2
    last = decide(idle, past, after=301)
    assert (last.desired, last.replicas, last.reason) == (1, 2, "Spare")
    assert last.victims == ("r0",)


def test_a_burst_inside_the_window_keeps_the_replicas() -> None:
    """The highest recommendation of the window counts: one busy moment restarts the waiting."""
    idle, busy = fleet(2, 0.0), fleet(2, 700.0)
    first = decide(idle, long_at(2))
    burst = decide(busy, history(*first.history, recommendations=first.recommendations), after=200)
    again = decide(idle, history(*burst.history, recommendations=burst.recommendations), after=215)
    past = history(*again.history, recommendations=again.recommendations)
    assert decide(idle, past, after=400).desired == 2
    assert decide(idle, past, after=516).desired == 1


AT_REST = load()
STAYS = {
    "a replica does not answer": seen(replica("a", AT_REST), replica("b", Failure("timeout"))),
    "no replica answers": seen(replica("a", Failure("timeout")), replica("b", Failure("timeout"))),
    "a replica starts": seen(replica("a", AT_REST), pending("b")),
    "nothing is ready yet": seen(pending("a"), pending("b")),
    "requests wait": seen(replica("a", AT_REST), replica("b", load(num_requests_running=4, num_requests_waiting=3))),
    "pods are replaced": seen(replica("a", AT_REST), replica("b", AT_REST), rolling=True),
    "requests run and nothing is known of capacity": seen(
        replica("a", AT_REST), replica("b", load(num_requests_running=1))
    ),
}


@pytest.mark.parametrize("why", STAYS)
def test_replicas_stay_while(why: str) -> None:
    """Each of these keeps a fleet that the window alone would shrink."""
    past = history(*long_at(2).scaling, recommendations=(Recommendation(later(-7200), 1),))
    assert decide(STAYS[why], past, chosen=policy()).desired == 2
    assert decide(seen(replica("a", AT_REST), replica("b", AT_REST)), past, chosen=policy()).desired == 1


def test_a_request_that_arrives_just_then_is_no_queue() -> None:
    """It waits for the step in progress to end, and would restart the window each time it is seen."""
    past = history(*long_at(2).scaling, recommendations=(Recommendation(later(-7200), 1),))
    seen_at_arrival = seen(replica("a", AT_REST), replica("b", load(num_requests_waiting=1)))
    assert decide(seen_at_arrival, past, chosen=policy()).desired == 1


@pytest.mark.parametrize(("tokens_per_second", "expected"), [(300.0, 1), (350.0, 2)])
def test_fewer_must_carry_the_load_with_room_to_spare(tokens_per_second: float, expected: int) -> None:
    """600 of the 940 tokens a second that one replica makes pass on it, 700 would leave too little room."""
    past = history(*long_at(2).scaling, recommendations=(Recommendation(later(-7200), 1),))
    assert decide(fleet(2, tokens_per_second), past).desired == expected


def test_speculation_that_is_cut_keeps_the_replicas() -> None:
    """A fleet short of memory has nothing to spare, whatever its tokens per second say."""
    past = history(*long_at(2).scaling, recommendations=(Recommendation(later(-7200), 1),))
    assert decide(fleet(2, 100.0), past, chosen=policy(PRIORS, ceiling=2)).desired == 2
    assert decide(fleet(2, 100.0), past).desired == 1


def test_hopeless_replicas_are_given_up_and_not_tried_again_at_once() -> None:
    """A replica that cannot start is taken back without a window, and demand waits before it asks for it again."""
    full = fleet(1, 850.0, requests_per_second=15.0).replicas
    stuck = seen(*full, pending("new", age=130, problem="CrashLoopBackOff"))
    given_up = decide(stuck, long_at(2))
    assert (given_up.desired, given_up.replicas, given_up.reason) == (1, 1, "GaveUp")
    assert "new is pending: CrashLoopBackOff" in given_up.message
    past = history(*given_up.history, recommendations=given_up.recommendations)
    assert decide(seen(*full), past, after=60).reason == "BackingOff"
    assert decide(seen(*full), past, after=301).desired == 2


def test_who_waits_for_the_place_of_a_replica_that_drains_is_no_hopeless_case() -> None:
    """A rollout without a spare place ends a replica first, and that may take all of its grace period."""
    full = fleet(1, 850.0, requests_per_second=15.0).replicas
    grace = {"terminationGracePeriodSeconds": 1000}
    world = seen(*full, pending("new", age=Timing().pending_timeout_seconds + 900, problem="Unschedulable"))
    drained_first = {"rollout": {"maxSurge": 0, "maxUnavailable": 1}, **grace}
    assert decide(world, long_at(2), template=drained_first, **AUTOSCALED).desired == 2
    assert decide(world, long_at(2), template=grace, **AUTOSCALED).reason == "GaveUp"


LOADING = load(state="loading")


@pytest.mark.parametrize(
    ("new", "seconds"),
    [
        (pending("new"), 900),
        (pending("new", problem="Unschedulable"), 900),
        (pending("new", problem="SchedulingGated"), 900),
        (pending("new", problem="Stuck"), 900),
        (pending("new", problem="ImagePullBackOff"), 120),
        (replica("new", Failure("timeout"), ready=False, problem=Problem("OOMKilled")), 120),
        (replica("new", LOADING, ready=False), 3600),
        (replica("new", LOADING, ready=False, problem=Problem("CrashLoopBackOff")), 3600),
        (replica("new", load(), ready=False, problem=Problem("CrashLoopBackOff")), 3600),
    ],
)
def test_a_replica_is_given_up_when_nobody_works_on_it(new: Replica, seconds: float) -> None:
    """A node for it takes ten minutes, weights take longer, also after a crash; a problem of its own stays one."""
    full = fleet(1, 850.0, requests_per_second=15.0).replicas
    for age, expected in ((seconds - 1, 2), (seconds + 1, 1)):
        waiting = replace(new, pod=replace(new.pod, since=later(-age)))
        assert decide(seen(*full, waiting), long_at(2)).desired == expected


def test_bounds_hold_whatever_is_recommended() -> None:
    """An edit of the bounds takes effect though nobody recommended it."""
    bounds = {"autoscaling": {"minReplicas": 3, "maxReplicas": 3}}
    for world, before in ((fleet(2, 0.0), 2), (fleet(5, 800.0), 5)):
        decision = decide(world, long_at(before), **bounds)
        assert (decision.desired, decision.history[-1].reason) == (3, "Bounds")


@pytest.mark.parametrize(("replicas", "expected"), [(None, 1), (0, 0), (3, 3)])
def test_without_autoscaling_the_spec_decides(replicas: int | None, expected: int) -> None:
    """`spec.replicas`, as kubectl scale or an HPA write it; 1 when it is absent."""
    spec = {} if replicas is None else {"replicas": replicas}
    decision = scaling.decide(smartspec(**spec), fleet(2, 0.0), history(), policy(), now=NOW, timing=Timing())
    assert (decision.desired, decision.active) == (expected, False)
    assert decision.history[-1].reason == "SpecReplicas"


def test_autoscaling_wins_over_replicas() -> None:
    """Both set is no error: kubectl scale on an autoscaled resource writes `spec.replicas`."""
    decision = decide(fleet(2, 300.0), long_at(2), replicas=5, **AUTOSCALED)
    assert (decision.desired, decision.active) == (2, True)


def test_a_first_reconcile_begins_with_the_fewest() -> None:
    """Before there is a Deployment there is nothing to scale by, and nothing to record."""
    decision = decide(Observation(), History(), autoscaling={"minReplicas": 2, "maxReplicas": 4})
    assert (decision.desired, decision.replicas, decision.history) == (2, 2, ())


def test_a_decision_that_the_status_never_got_stands() -> None:
    """The Deployment knows better than the history, and whoever scales it by hand is overruled all the same."""
    past = replace(long_at(2), replicas=4)
    assert decide(fleet(4, 700.0), past).desired == 4
    for world in (fleet(4, 700.0), seen(*fleet(2, 700.0).replicas, deployed=7)):
        kept = scaling.keep(smartspec(**AUTOSCALED), world, past, policy(PRIORS), now=NOW, timing=Timing())
        assert (kept.desired, kept.replicas) == (4, 4)


def test_a_deployment_that_somebody_deleted_comes_back_as_it_was() -> None:
    """What was decided for it is remembered, and demand has not gone with it."""
    assert decide(Observation(), long_at(4)).desired == 4


def test_a_victim_has_the_specs_grace_period_to_answer() -> None:
    """It is named as busy while it works, and told to end when that time is over."""
    works = replica("b", load(state="draining", num_requests_running=1), ready=False, since=later(-400))
    world, spec = seen(replica("a", AT_REST), works), {**AUTOSCALED, "template": {"terminationGracePeriodSeconds": 500}}
    kept = scaling.keep(smartspec(**spec), world, long_at(1), policy(), now=NOW, timing=Timing())
    assert (kept.replicas, kept.victims, kept.busy) == (2, ("b",), ("b",))
    late = scaling.keep(smartspec(**AUTOSCALED), world, long_at(1), policy(), now=NOW, timing=Timing())
    assert (late.replicas, late.victims, late.busy) == (1, ("b",), ())


def test_between_decisions_a_drain_is_carried_on() -> None:
    """The Deployment follows a drained victim on the next tick, not only when scaling is due again."""
    drained = replica("b", load(state="draining"), ready=False)
    world = seen(replica("a", AT_REST), drained)
    kept = scaling.keep(smartspec(**AUTOSCALED), world, long_at(1), policy(), now=NOW, timing=Timing())
    assert (kept.desired, kept.replicas, kept.victims) == (1, 1, ("b",))
    assert kept.recommendations == long_at(1).recommendations


LENGTHS = RequestLengths(50.0, 100.0)
ASKED = ScalingRecord(
    time=timestamp(later(-90)), from_replicas=1, to_replicas=2, reason="Demand", predicted_tokens_per_second=940.0,
    predicted_concurrency=64,
)  # fmt: skip


def measured(world: Observation, asked: ScalingRecord = ASKED) -> float | None:
    """What is measured for a decision of 90 seconds ago."""
    decision = decide(world, history(asked, recommendations=(Recommendation(later(-90), 2),)))
    return decision.history[0].measured_tokens_per_second


def test_a_record_learns_what_its_replicas_really_made() -> None:
    """The prediction stands beside the measurement, written once, when the replicas that were added serve."""
    as_busy = fleet(2, 640.0, num_requests_running=64, tpot=histogram())
    assert measured(as_busy) == 640.0
    known = msgspec.structs.replace(ASKED, measured_tokens_per_second=700.0)
    assert measured(as_busy, known) == 700.0
    assert measured(fleet(1, 640.0)) is None, "not all have come"
    nothing = msgspec.structs.replace(ASKED, predicted_tokens_per_second=None, predicted_concurrency=None)
    assert measured(as_busy, nothing) is None, "nothing was predicted"


@pytest.mark.parametrize("queue", [{}, {"num_requests_waiting": 99, "longest_wait_seconds": 9.0}])
def test_replicas_with_less_to_do_show_their_capacity_in_proportion(queue: dict[str, Any]) -> None:
    """What the model expects of fewer requests, they make, or half of it: so they would with as many as predicted, also
    where a tighter bound than at the prediction keeps requests waiting."""
    many, few = (operating_point(PRIORS, LENGTHS, n, max_prefill_tokens=2048).tokens_per_second for n in (64, 8))
    report = {"tpot": histogram(), "num_requests_running": 8, **queue}
    assert measured(fleet(2, few, **report)) == pytest.approx(many, rel=0.01)
    assert measured(fleet(2, few / 2, **report)) == pytest.approx(many / 2, rel=0.01)


def test_how_many_run_is_told_by_what_they_took_not_by_one_look() -> None:
    """By Little's law: 8 requests at a time make what is made, though none or all may run when it is looked at."""
    many, few = (operating_point(PRIORS, LENGTHS, n, max_prefill_tokens=2048) for n in (64, 8))
    for seen_running in (0, 40):
        report = {"tpot": histogram(*[few.tpot_seconds] * 200), "num_requests_running": seen_running}
        shown = measured(fleet(2, few.tokens_per_second, **report))
        assert shown == pytest.approx(many.tokens_per_second, rel=0.25)  # the histogram's buckets are wide


def test_an_unchanged_world_gives_an_equal_decision() -> None:
    """At rest nothing is written: the decision at a later moment equals the one before."""
    world, past = fleet(2, 600.0), long_at(2)
    first = decide(world, past)
    again = decide(world, history(*first.history, recommendations=first.recommendations), after=3600)
    assert again == first
