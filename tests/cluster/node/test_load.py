"""Load that rises and falls, and settings that change under it, on real pods: not one request is lost.

The figures are printed: `pytest -s`, or the report of a failure.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from node_user import MODEL, NodeUser, eventually
from release import Release
from traffic import Traffic

ServiceUrl = Callable[[str, str], str]

# Windows are short so that minutes show what otherwise takes an hour.
SCALED: dict[str, Any] = {
    "autoscaling": {
        "minReplicas": 1, "maxReplicas": 2, "scaleUpStabilizationSeconds": 0, "scaleDownStabilizationSeconds": 15,
    },
    # A core keeps it for some ten requests at once, not for as many as may run.
    "slo": {"tpotSeconds": 0.02},
    "server": {"maxNumSeqs": 64},
}  # fmt: skip
FEW, MANY = 1, 32
MOST_ERROR = 0.4
"""Of one prediction of a replica's capacity."""
CORES = 4
"""One for each replica, and for their clients and the cluster the rest."""


def finished_requests(user: NodeUser) -> dict[str, float]:
    """How many requests each ready pod has finished, by name, as its own metrics say."""
    found = {}
    for pod in user.pods(ready=True):
        name = pod["metadata"]["name"]
        text = user.kubectl("get", "--raw", f"/api/v1/namespaces/{user.namespace}/pods/{name}:8000/proxy/metrics")
        found[name] = sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "vllm:request_success_total"
        )
    return found


def capacity_errors(user: NodeUser) -> list[float]:
    """How far the predicted capacity was off, of each decision whose replicas have shown theirs."""
    return [
        abs(entry["predictedTokensPerSecond"] / entry["measuredTokensPerSecond"] - 1)
        for entry in user.status.get("scalingHistory", [])
        if entry.get("predictedTokensPerSecond") and entry.get("measuredTokensPerSecond")
    ]


def test_a_load_step_is_met_and_not_a_request_is_lost(
    release: Release, kubectl: Callable[..., str], namespace: str, service_url: ServiceUrl
) -> None:
    """Stage one acts within 10 s; a second pod is asked for within 30 s, and within 15 s of being ready it serves at
    least 30 % of the new requests of clients that keep their connections; the load falls, and it goes."""
    user = NodeUser(kubectl, namespace)
    user.apply(**SCALED)
    user.wait_ready()
    generation = user.status["policy"]["generation"]
    stepped = time.monotonic()
    with Traffic(service_url(namespace, user.name), MODEL, clients=MANY, max_tokens=32) as traffic:
        eventually(lambda: user.status["policy"]["generation"] > generation, seconds=30, why=user.story)
        acted = time.monotonic() - stepped
        eventually(lambda: user.get("deployment")["spec"]["replicas"] == 2, seconds=60, why=user.story)
        asked = time.monotonic() - stepped
        eventually(lambda: len(user.pods(ready=True)) == 2, seconds=120, why=user.story)
        ready = time.monotonic() - stepped
        (first,) = [name for name, count in finished_requests(user).items() if count > 20]
        time.sleep(15)
        before = finished_requests(user)
        time.sleep(10)
        served = {name: count - before.get(name, 0) for name, count in finished_requests(user).items()}
        share = 1 - served[first] / sum(served.values())
        # What was predicted is measured while they are busy: a minute after the decision, in windows of half a minute.
        eventually(lambda: capacity_errors(user), seconds=90, why=user.story)
        errors = capacity_errors(user)
        traffic.clients(FEW)
        fell = time.monotonic()
        eventually(lambda: len(user.pods()) == 1, seconds=180, why=user.story)
        gone = time.monotonic() - fell
        time.sleep(5)
    history = user.status["scalingHistory"]
    print(
        f"\nstage one {acted:.1f} s, second pod asked for {asked:.1f} s, ready {ready:.1f} s after the step; it serves "
        f"{share:.0%} of new requests; gone {gone:.1f} s after the fall; predicted capacity off by "
        f"{[f'{error:.0%}' for error in errors]}; {traffic.report()}\n"
        + "\n".join(
            f"{e['fromReplicas']} -> {e['toReplicas']} {e['reason']}: {e.get('message')}; with "
            f"{e.get('predictedConcurrency')} requests at once tokens/s predicted {e.get('predictedTokensPerSecond')}, "
            f"measured {e.get('measuredTokensPerSecond')}"
            for e in history
        )
    )
    assert not traffic.failed, traffic.report()
    assert acted <= 10
    assert asked <= 30
    assert share >= 0.3
    # Predictions are meant to be right within 15 % in the median. Here is one, of a replica that shares this machine's
    # cores with its clients and, when it is measured, with another replica: 7, 7, 12 and 18 % were seen. Where the
    # cores that both were promised do not exist, what is measured is that.
    if len(os.sched_getaffinity(0)) >= CORES:
        assert max(errors) <= MOST_ERROR


def test_load_that_one_replica_bears_adds_none(
    release: Release, kubectl: Callable[..., str], namespace: str, service_url: ServiceUrl
) -> None:
    """A pod is asked for only when it is needed."""
    user = NodeUser(kubectl, namespace)
    user.apply(**SCALED)
    user.wait_ready()
    with Traffic(service_url(namespace, user.name), MODEL, clients=2, max_tokens=32) as traffic:
        time.sleep(35)
        assert user.get("deployment")["spec"]["replicas"] == 1, user.story()
    print(f"\n{traffic.report()}")
    assert not traffic.failed


def test_a_rolling_update_loses_nothing(
    release: Release, kubectl: Callable[..., str], namespace: str, service_url: ServiceUrl
) -> None:
    """Every pod is another one after a setting has changed, under load all the while."""
    user = NodeUser(kubectl, namespace)
    user.apply(replicas=2)
    user.wait_ready(2)
    before = {pod["metadata"]["uid"] for pod in user.pods()}
    with Traffic(service_url(namespace, user.name), MODEL, clients=4, max_tokens=48) as traffic:
        time.sleep(3)
        began = time.monotonic()
        user.patch(server={"maxNumSeqs": 32})
        eventually(
            lambda: user.is_ready(2) and not before & {pod["metadata"]["uid"] for pod in user.pods()},
            seconds=240,
            why=user.story,
        )
        took = time.monotonic() - began
        time.sleep(5)
    print(f"\nrolled 2 replicas in {took:.1f} s; {traffic.report()}")
    assert not traffic.failed, traffic.report()
