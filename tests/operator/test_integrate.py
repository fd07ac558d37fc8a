"""What only some clusters have may fail: those that ask for it are told, everybody is served."""

import asyncio
from typing import Any

import pytest

from fleets import NOW
from memory_api import MemoryApi
from smartspec_operator import recent
from smartspec_operator.kube import ApiError
from smartspec_operator.recent import RecentFailures
from smartspec_operator.reconcile import reconcile
from smartspec_operator.replicas import Replicas
from smartspec_operator.reported import Condition
from smartspec_operator.resource import parse
from smartspec_operator.snapshot import KubernetesCluster
from smartspec_operator.world import Due, Timing


class Nobody(Replicas):
    """No replica is there to be asked."""


async def reconciled(cluster: KubernetesCluster, **integrations: Any) -> Condition | None:
    """`Integrated` after one reconcile, which ends as it does without any."""
    spec = {"model": {"source": "org/m"}, "integrations": integrations}
    owner = parse({"metadata": {"name": "demo", "namespace": "ns", "uid": "u", "generation": 1}, "spec": spec})
    made = await reconcile(
        owner, cluster.snapshot(), Nobody(), now=NOW, image="i", new_key=lambda: "k" * 40, timing=Timing(), due=Due()
    )
    available = made.condition("Available")
    assert available is not None
    assert available.reason == "NoReplicaReady"
    return made.condition("Integrated")


@pytest.fixture
def server() -> MemoryApi:
    """One that takes everything."""
    return MemoryApi()


@pytest.fixture
def cluster(server: MemoryApi) -> KubernetesCluster:
    """What is known of it."""
    return KubernetesCluster(server, None)


@pytest.mark.parametrize("verb", ["knows", "list", "apply"])
@pytest.mark.parametrize("code", [403, 404, 500, 0])
async def test_a_failing_kind_is_told_to_those_who_ask_for_it(
    server: MemoryApi, cluster: KubernetesCluster, verb: str, code: int
) -> None:
    """Everything else is made, the other integration too; who asks for none hears nothing."""
    server.failing = {(verb, "PodMonitor"): ApiError(code, "no right to that")}
    told = await reconciled(cluster, podMonitor={}, inferencePool={"endpointPicker": "p"})
    assert told is not None
    assert (told.status, told.reason) == ("False", "Refused")
    assert told.message == "spec.integrations.podMonitor: no right to that"
    assert {kind for kind, _ in server.live} >= {"Deployment", "Service", "ConfigMap", "Secret", "InferencePool"}
    server.live.clear()
    assert await reconciled(cluster) is None
    assert ("Deployment", "demo") in server.live


async def test_a_name_that_is_taken_stops_only_the_integration(server: MemoryApi, cluster: KubernetesCluster) -> None:
    """Somebody else's monitor is left alone."""
    theirs = {"kind": "PodMonitor", "metadata": {"name": "demo", "namespace": "ns", "labels": {}}}
    server.live["PodMonitor", "demo"] = theirs
    told = await reconciled(cluster, podMonitor={})
    assert told is not None
    assert (told.status, told.reason) == ("False", "Conflict")
    assert server.live["PodMonitor", "demo"] == theirs
    assert ("Deployment", "demo") in server.live


async def test_what_may_not_be_removed_is_told(server: MemoryApi, cluster: KubernetesCluster) -> None:
    """Though nobody asks for it any more."""
    assert (await reconciled(cluster, podMonitor={})) is not None
    server.failing = {("delete", "PodMonitor"): ApiError(403, "no")}
    told = await reconciled(cluster)
    assert told is not None
    assert (told.status, told.reason) == ("False", "Refused")
    server.failing = {}
    await reconciled(cluster)
    assert ("PodMonitor", "demo") not in server.live


@pytest.mark.parametrize("verb", ["knows", "list", "apply"])
async def test_what_fails_is_not_asked_every_tick(
    server: MemoryApi, cluster: KubernetesCluster, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And tried again after a while."""
    server.failing = {(verb, "PodMonitor"): ApiError(500, "webhook")}
    for _ in range(5):
        await reconciled(cluster, podMonitor={})
    assert server.asked.count((verb, "PodMonitor")) == 1
    server.failing = {}
    held = cluster.failures._failed
    cluster.failures._failed = {question: (0.0, error) for question, (_, error) in held.items()}
    told = await reconciled(cluster, podMonitor={})
    assert told is not None
    assert told.status == "True"


async def test_an_answer_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook that hangs holds up nobody else."""
    monkeypatch.setattr(recent, "PATIENCE_SECONDS", 0.01)

    async def never() -> None:
        await asyncio.sleep(60)

    failures = RecentFailures()
    for _ in range(2):
        with pytest.raises(ApiError, match="no answer within"):
            await failures.ask("x", never)
