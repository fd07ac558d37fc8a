"""What is reported: numbers that rest at rest, conditions that move only when their status does, news for people."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fleets import histogram, later, load, pending, policy, replica, seen, smartspec
from smartspec.policy.load import LoadReport
from smartspec_operator import status
from smartspec_operator.reported import ScalingRecord, Status, as_manifest
from smartspec_operator.resource import SmartSpec, parse, previous_status
from smartspec_operator.world import Failure, Observation, Problem, ScalingDecision

ONE = ScalingDecision(desired=1, replicas=1, active=False)
SERVING = seen(replica("a", load(generation=1)))


def report(
    world: Observation, old: Status | None = None, *, after: float = 0.0, scale: ScalingDecision = ONE, **spec: Any
) -> Status:
    """The status of *world* after an *old* one."""
    owner: SmartSpec = msgspec.structs.replace(smartspec(**spec), status=old or Status())
    return status.compute(owner, world, policy(), scale, now=later(after))


def condition(world: Observation, kind: str, **more: Any) -> tuple[str, str] | None:
    """Status and reason of one condition; None where it is not set."""
    found = report(world, **more).condition(kind)
    return None if found is None else (found.status, found.reason)


CASES: list[tuple[str, Observation, tuple[str, str] | None]] = [
    ("Ready", SERVING, ("True", "Serving")),
    ("Ready", seen(pending("a")), ("False", "NoReplicaReady")),
    ("Ready", seen(pending("a", problem="ImagePullBackOff")), ("False", "ImagePullBackOff")),
    ("Ready", seen(replica("a"), pending("b", problem="CrashLoopBackOff")), ("True", "Serving")),
    ("Degraded", seen(replica("a"), pending("b", problem="CrashLoopBackOff")), ("True", "CrashLoopBackOff")),
    ("Degraded", SERVING, ("False", "AsExpected")),
    ("Progressing", SERVING, ("False", "Complete")),
    ("Progressing", seen(pending("a")), ("True", "Starting")),
    ("Progressing", replace(SERVING, rolling=True), ("True", "Rolling")),
    ("MetricsAvailable", SERVING, ("True", "AllReplicasAnswer")),
    ("MetricsAvailable", seen(replica("a", Failure("timeout"))), ("False", "NoReplicaAnswers")),
    ("MetricsAvailable", seen(replica("a", load()), replica("b", Failure("x"))), ("False", "SomeReplicasSilent")),
    ("MetricsAvailable", seen(pending("a")), None),
    ("PolicyApplied", SERVING, ("True", "Applied")),
    ("PolicyApplied", seen(replica("a", load(generation=0))), ("False", "Pending")),
    ("PolicyApplied", seen(replica("a", Failure("timeout"))), None),
    ("ScalingActive", SERVING, ("False", "AutoscalingAbsent")),
]


@pytest.mark.parametrize(("kind", "world", "expected"), CASES)
def test_conditions(kind: str, world: Observation, expected: tuple[str, str] | None) -> None:
    """Each condition says what it is about, and is absent rather than unknown."""
    assert condition(world, kind) == expected


def test_objectives_are_met_missed_or_not_spoken_of() -> None:
    """`SLOMet` speaks only of an objective that was given, and only while requests finish."""
    slo = {"slo": {"tpotSeconds": 0.05}}
    fast, slow = (seen(replica("a", load(tpot=histogram(*[s] * 50), generation=1))) for s in (0.01, 0.2))
    assert condition(fast, "SLOMet", **slo) == ("True", "Attained")
    assert condition(slow, "SLOMet", **slo) == ("False", "Missed")
    assert condition(SERVING, "SLOMet", **slo) is None
    assert condition(fast, "SLOMet") is None


def test_a_policy_that_was_refused_says_by_whom_and_why() -> None:
    """A replica that answers with an error is not merely late."""
    owner, world = smartspec(), seen(replica("a", load(generation=0)))
    told = status.compute(owner, world, policy(), ONE, {"a": Failure("/policy: HTTP 409 stale")}, now=later(0))
    applied = told.condition("PolicyApplied")
    assert applied is not None
    assert (applied.status, applied.reason) == ("False", "Refused")
    assert applied.message.endswith("a: /policy: HTTP 409 stale")


def test_an_admin_key_that_is_missing_is_told_before_any_pod_can() -> None:
    """The field of the spec stands in the message, and in that of `Ready`."""
    server = {"adminKeySecretRef": {"name": "mine", "key": "k"}}
    told = report(seen(pending("a")), server=server)
    for kind in ("Degraded", "Ready"):
        found = told.condition(kind)
        assert found is not None
        assert found.reason == "SecretMissing"
        assert found.message.startswith("spec.server.adminKeySecretRef: ")
    there = replace(seen(pending("a")), admin_key_version="v")
    assert condition(there, "Degraded", server=server) == ("False", "AsExpected")


@pytest.mark.parametrize(("shared", "other", "reason"), [
    (False, "n2", "CacheNotShared"), (False, "n1", "Stuck"), (True, "n2", "Stuck"),
])  # fmt: skip
def test_a_cache_for_one_node_is_diagnosed_on_several(shared: bool, other: str, reason: str) -> None:
    """A pod that cannot mount it says nothing itself, and only waits."""
    stuck = replace(pending("b", problem="Stuck"), pod=replace(pending("b", problem="Stuck").pod, node=other))
    world = replace(seen(replica("a", load(generation=1), node="n1"), stuck), shared_cache=shared)
    assert condition(world, "Degraded") == ("True", reason)


def test_waiting_for_the_next_pull_keeps_what_the_last_one_said() -> None:
    """Kubelet's words alternate; the resource's do not, or each turn would be a write."""
    failed = replica("a", ready=False, problem=Problem("ImagePullBackOff", "no such host"))
    waits = replica("a", ready=False, problem=Problem("ImagePullBackOff", 'Back-off pulling image "x"'))
    first = report(seen(failed))
    assert report(seen(waits), first) == first


def test_pods_that_cannot_be_made_are_no_mere_wait() -> None:
    """There is no pod that could say why: the Deployment does."""
    world = replace(seen(deployed=1), problem=Problem("FailedCreate", "exceeded quota"))
    assert condition(world, "Ready") == ("False", "FailedCreate")


NO_ROOM = replica("b", ready=False, problem=Problem("Unschedulable", "0/2 nodes are available"))
LAST_GPU = {"template": {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}}


def progress(world: Observation, **spec: Any) -> tuple[str, str]:
    """Reason and message of `Progressing`, which is True."""
    found = report(world, **spec).condition("Progressing")
    assert found is not None
    assert found.status == "True"
    return found.reason, found.message


def test_a_rollout_that_waits_for_room_says_for_whom_and_what_would_do_without() -> None:
    """With no place to spare it would never end, and nothing else would tell why."""
    rolling = seen(replica("a", load(generation=1)), NO_ROOM, rolling=True)
    reason, message = progress(rolling)
    assert reason == "WaitsForRoom"
    assert message.startswith("b waits for room: 0/2 nodes are available; spec.template.rollout with maxSurge 0")
    assert progress(rolling, **LAST_GPU) == ("WaitsForRoom", "b waits for room: 0/2 nodes are available")
    assert progress(seen(NO_ROOM))[0] == "Starting"


def test_waiting_for_the_place_of_a_replica_that_drains_is_no_trouble() -> None:
    """Every rollout without a spare place looks like that for as long as a replica drains; longer, it is one."""
    drains = replica("a", terminating=True, node="n1")
    world = seen(drains, NO_ROOM, deployed=1, makes_room=True)
    assert progress(world, **LAST_GPU) == ("WaitsForRoom", "b waits for room, which a replica that drains will leave")
    assert condition(world, "Degraded", **LAST_GPU) == ("False", "AsExpected")
    assert condition(replace(world, makes_room=False), "Degraded", **LAST_GPU) == ("True", "Unschedulable")
    broken = seen(drains, NO_ROOM, pending("c", problem="CrashLoopBackOff"), makes_room=True)
    assert condition(broken, "Degraded", **LAST_GPU) == ("True", "CrashLoopBackOff")


def test_integrations_that_the_cluster_does_not_know_are_named() -> None:
    """A condition of its own: serving goes on without them."""
    asked = {"integrations": {"podMonitor": {}}}
    known = replace(SERVING, known_kinds=frozenset({"PodMonitor"}))
    assert condition(SERVING, "Integrated", **asked) == ("False", "KindMissing")
    assert condition(known, "Integrated", **asked) == ("True", "Complete")
    assert condition(known, "Integrated") is None
    assert condition(SERVING, "Ready", **asked) == ("True", "Serving")


def test_a_budget_that_cannot_be_made_is_told_where_it_is_wanted() -> None:
    """An older role without the right for it, or a name that is taken: with one replica nobody misses it."""
    problem = {"PodDisruptionBudget": Problem("Refused", "forbidden")}
    two = replace(seen(replica("a"), replica("b")), integration_problems=problem)
    told = report(two).condition("Integrated")
    assert told is not None
    assert (told.status, told.reason, told.message) == (
        "False", "Refused", "the PodDisruptionBudget of several replicas: forbidden",
    )  # fmt: skip
    assert condition(replace(SERVING, integration_problems=problem), "Integrated") is None


def test_autoscaling_wins_and_says_so() -> None:
    """Both set is no error."""
    active = replace(ONE, active=True)
    assert condition(SERVING, "ScalingActive", scale=active) == ("True", "Autoscaling")
    both = {"replicas": 2, "autoscaling": {"maxReplicas": 3}}
    assert condition(SERVING, "ScalingActive", scale=active, **both) == ("True", "AutoscalingWins")


def test_transition_times_move_only_with_the_status() -> None:
    """Another reason or message under the same status keeps the time; another status takes the new one."""
    first = report(seen(pending("a")))
    waiting = report(seen(pending("a", problem="Unschedulable")), first, after=60)
    ready = report(SERVING, waiting, after=120)
    times = [s.condition("Ready").last_transition_time for s in (first, waiting, ready)]  # type: ignore[union-attr]
    assert times == ["2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z", "2026-03-01T12:02:00Z"]


def test_an_unchanged_world_gives_an_equal_status() -> None:
    """Rest means no patch, however much later it is."""
    first = report(SERVING)
    assert report(SERVING, first, after=9999) == first


def written(loads: Sequence[LoadReport], tick: float = 2.0) -> list[float]:
    """When the status was written, in seconds from the first report, as *loads* are seen tick after tick."""
    found, now = [], report(seen(replica("a", loads[0])))
    for number, seen_then in enumerate(loads[1:], 1):
        before, now = now, report(seen(replica("a", seen_then)), now, after=number * tick)
        found += [number * tick] if now != before else []
    return found


@pytest.mark.parametrize("rate", [0.5, 5.0, 50.0])
def test_steady_load_is_hardly_ever_written(rate: float) -> None:
    """Poisson arrivals at one rate, ten minutes long, seen every two seconds: written less than once a minute."""
    counts = [len(written(steady(random.Random(seed), rate))) for seed in range(4)]
    assert sum(counts) / len(counts) <= 6, counts
    assert max(counts) < 10


def steady(chance: random.Random, rate: float) -> list[LoadReport]:
    """Reports of ten minutes, one in two seconds."""

    def some(mean: float) -> int:
        return max(0, round(chance.gauss(mean, mean**0.5)))

    window = [some(2 * rate) for _ in range(15)]
    loads = []
    for _ in range(300):
        window = [*window[1:], some(2 * rate)]
        arrivals = sum(window) / 30
        loads.append(
            load(
                tokens_per_second=100 * arrivals, generation=1, num_requests_running=some(2 * rate),
                num_requests_waiting=some(1), kv_cache_usage=min(1.0, some(20) / 100),
                tpot=histogram(*[chance.lognormvariate(-3.5, 0.3) for _ in range(sum(window))]),
            )
        )  # fmt: skip
    return loads


@pytest.mark.parametrize(
    ("before", "after", "seconds"), [(0.0, 300.0, 6), (300.0, 0.0, 6), (300.0, 600.0, 42), (300.0, 330.0, 600)]
)
def test_a_change_is_told_the_sooner_the_larger_it_is(before: float, after: float, seconds: float) -> None:
    """Nothing, or from nothing, within seconds; and then it rests."""
    one, other = (load(tokens_per_second=tokens, generation=1) for tokens in (before, after))
    assert written([one, *[other] * 400]) == [seconds]


def test_a_report_without_a_time_rests_too() -> None:
    """A CRD that knows none drops it: the figures are held, and rest is no write."""
    busy = report(seen(replica("a", load(tokens_per_second=300.0, generation=1))))
    assert busy.load is not None
    old = msgspec.structs.replace(busy, load=msgspec.structs.replace(busy.load, time=""))
    assert report(seen(replica("a", load(tokens_per_second=310.0, generation=1))), old, after=9999) == old


def test_what_nobody_reports_is_left_as_it_was() -> None:
    """Missing is not zero: the last load stays while no replica answers."""
    busy = report(seen(replica("a", load(tokens_per_second=300.0, generation=1))))
    assert report(seen(replica("a", Failure("timeout"))), busy).load == busy.load


def test_a_refused_spec_keeps_what_was_reported() -> None:
    """Only `Ready` changes: what runs goes on running."""
    first = report(SERVING)
    refused = status.refused(first, "InvalidSpec", "spec.x: wrong", generation=4, now=later(5))
    ready = refused.condition("Ready")
    assert ready is not None
    assert (ready.status, ready.reason, ready.observed_generation) == ("False", "InvalidSpec", 4)
    assert refused.condition("Available") == first.condition("Available")
    assert (refused.replicas, refused.url, refused.load) == (first.replicas, first.url, first.load)


def test_a_long_refusal_is_cut_to_what_the_api_takes() -> None:
    """An API server that names a thousand faults must not refuse its own words as a status."""
    told = status.refused(Status(), "InvalidSpec", "spec.template.env: wrong, " * 4000, generation=1, now=later(0))
    ready = told.condition("Ready")
    assert ready is not None
    assert ready.message.startswith("spec.template.env: wrong, ")
    assert len(ready.message) == status.LONGEST < 32_768


@pytest.mark.parametrize(
    ("service", "url"),
    [
        ({"spec": {"ports": [{"name": "http", "port": 80}]}}, "http://demo.default.svc/v1"),
        ({"spec": {"ports": [{"name": "http", "port": 8000}]}}, "http://demo.default.svc:8000/v1"),
        (
            {
                "spec": {"ports": [{"name": "http", "port": 80}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}},
            },
            "http://10.0.0.1/v1",
        ),
    ],
)
def test_the_url_is_what_clients_can_use(service: dict[str, Any], url: str) -> None:
    """From outside where the Service has an address there, else inside the cluster."""
    assert report(replace(SERVING, service=service)).url == url


def test_news_are_what_turned() -> None:
    """Readiness that turned, a problem, a decision: once each; nothing while all stays."""
    record = ScalingRecord(time="2026-03-01T12:00:00Z", from_replicas=1, to_replicas=2, reason="Demand", message="m")
    before = report(seen(pending("a")))
    after = report(SERVING, before, scale=replace(ONE, history=(record,)))
    assert [(n.type, n.reason) for n in status.news(Status(), before)] == [("Normal", "NoReplicaReady")]
    assert [(n.type, n.reason) for n in status.news(before, after)] == [("Normal", "Serving"), ("Normal", "Scaled")]
    assert status.news(after, after) == []
    broken = report(seen(pending("a", problem="Unschedulable")), after)
    assert [n.reason for n in status.news(after, broken)] == ["Unschedulable"]


def test_a_status_survives_the_api() -> None:
    """What is written is read back as the same value, after a restart too."""
    record = ScalingRecord(time="2026-03-01T12:00:00Z", from_replicas=1, to_replicas=2, reason="Demand")
    written = report(
        seen(replica("a", load(tokens_per_second=123.4, generation=1))), scale=replace(ONE, history=(record,))
    )
    body = {"metadata": {"name": "demo"}, "spec": {"model": {"source": "m"}}, "status": as_manifest(written)}
    assert previous_status(body) == parse(body).status == written
