"""A spec that is refused: what runs of it is served on and looked at, and the status says how it is."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession

from memory_api import MemoryApi
from smartspec_operator.controller import Controller
from smartspec_operator.kube import ApiError
from smartspec_operator.metrics import Metrics
from smartspec_operator.resource import LABEL_INSTANCE, LABEL_NAME
from smartspec_operator.snapshot import KubernetesCluster
from smartspec_operator.world import Timing

TYPO = {"template": {"tolerations": [{"key": 5}]}}
WEBHOOK = ApiError(500, 'failed calling webhook "x": context deadline exceeded')


class World(MemoryApi):
    """A SmartSpec named demo, its children and its pods."""

    def wish(self, generation: int = 1, **spec: Any) -> None:
        """The SmartSpec, edited: so often by now."""
        before = self.live.get(("SmartSpec", "demo"), {})
        metadata = {"name": "demo", "namespace": "ns", "uid": "u", "generation": generation}
        self.live["SmartSpec", "demo"] = {
            "metadata": metadata, "spec": {"model": {"source": "org/m"}, **spec}, "status": before.get("status", {}),
        }  # fmt: skip

    def run_pods(self, *names: str) -> None:
        """These pods are ready, and no other is there."""
        self.live = {key: live for key, live in self.live.items() if key[0] != "Pod"}
        for name in names:
            self.live["Pod", name] = {
                "metadata": {
                    "name": name, "namespace": "ns", "creationTimestamp": "2026-03-01T11:00:00Z",
                    "labels": {LABEL_NAME: "smartspec", LABEL_INSTANCE: "demo"},
                },
                "spec": {"containers": [{}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }  # fmt: skip

    @property
    def status(self) -> dict[str, Any]:
        """What is reported."""
        return dict(self.live["SmartSpec", "demo"]["status"])

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        return next((c["status"], c["reason"]) for c in self.status["conditions"] if c["type"] == kind)


@pytest.fixture
def world() -> World:
    """A SmartSpec that was just made."""
    found = World()
    found.wish()
    return found


@pytest.fixture
async def operator(world: World) -> AsyncIterator[Controller]:
    """A controller that is told when to tick."""
    async with ClientSession() as session:
        yield Controller(KubernetesCluster(world, None), session, Metrics(), image="image", timing=Timing())


async def serving(world: World, operator: Controller) -> None:
    """It is served by one replica."""
    await operator.tick()
    world.run_pods("a")
    await operator.tick()
    assert world.condition("Ready") == ("True", "Serving")


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("judge", ["operator", "server"])
async def test_what_runs_under_a_refused_spec_is_looked_at(
    world: World, operator: Controller, judge: str, restarted: bool
) -> None:
    """Its pods may die meanwhile: tick after tick the status says so, with the refusal over it; rest is no write."""
    await serving(world, operator)
    if restarted:
        next(iter(operator._paces.values())).accepted = None
    if judge == "operator":
        world.wish(2, speculation={"method": "DraftModel"})
    else:
        world.wish(2, **TYPO)
        world.failing = {("apply", "Deployment"): ApiError(422, "spec.template.spec.tolerations: Invalid value")}
    await operator.tick()
    assert world.condition("Ready") == ("False", "InvalidSpec")
    assert world.condition("Available") == ("True", "ReplicasReady")
    assert (world.status["readyReplicas"], world.status["observedGeneration"]) == (1, 2)
    world.run_pods()
    await operator.tick()
    assert world.condition("Ready") == ("False", "InvalidSpec")
    assert world.condition("Available") == ("False", "NoReplicaReady")
    assert (world.status["replicas"], world.status["readyReplicas"]) == (0, 0)
    world.asked.clear()
    await operator.tick()
    assert ("patch", "SmartSpec") not in world.asked


async def test_a_part_that_cannot_be_read_hides_no_other(world: World, operator: Controller) -> None:
    """A value of the wrong type, which an older CRD lets through."""
    await serving(world, operator)
    next(iter(operator._paces.values())).accepted = None
    world.wish(2, autoscaling={"maxReplicas": "many"})
    world.run_pods()
    await operator.tick()
    assert world.condition("Ready") == ("False", "InvalidSpec")
    assert world.condition("Available") == ("False", "NoReplicaReady")
    assert world.condition("ScalingActive") == ("False", "AutoscalingAbsent")


async def test_the_last_good_spec_is_carried_out(world: World, operator: Controller) -> None:
    """A child that goes meanwhile comes back as it was; nothing of the refused spec is in it."""
    await serving(world, operator)
    world.wish(2, speculation={"method": "DraftModel"}, replicas=7)
    await operator.tick()
    del world.live["Service", "demo"]
    await operator.tick()
    assert ("Service", "demo") in world.live
    assert world.live["Deployment", "demo"]["spec"]["replicas"] == 1
    assert world.condition("Ready") == ("False", "InvalidSpec")
    world.wish(3, replicas=2)
    await operator.tick()
    assert world.live["Deployment", "demo"]["spec"]["replicas"] == 2
    assert world.condition("Ready") == ("True", "Serving")


async def test_what_was_never_served_has_only_its_refusal(world: World, operator: Controller) -> None:
    """Nothing starts, so nothing is said of replicas."""
    world.wish(speculation={"method": "DraftModel"})
    await operator.tick()
    assert [condition["type"] for condition in world.status["conditions"]] == ["Ready"]


@pytest.mark.parametrize("trouble", [WEBHOOK, ApiError(504, "timeout"), ApiError(0, "PATCH Deployment: TimeoutError")])
async def test_a_new_spec_that_the_server_fails_to_take_is_told(
    world: World, operator: Controller, trouble: ApiError
) -> None:
    """A webhook that is down: somebody who has just made his first SmartSpec must not look at nothing."""
    world.failing = {("apply", "Deployment"): trouble}
    for _ in range(2):
        await operator.tick()
        assert world.condition("Ready") == ("False", "ApplyFailed")
        (ready,) = world.status["conditions"]
        assert str(trouble) in ready["message"]
        (pace,) = operator._paces.values()
        assert pace.refusal is not None
        pace.refusal = replace(pace.refusal, until=time.monotonic())
    world.failing = {}
    await operator.tick()
    assert world.condition("Ready") == ("False", "NoReplicaReady")


async def test_trouble_of_the_server_is_no_fault_of_what_serves(world: World, operator: Controller) -> None:
    """It stays ready, and what is seen of it is told."""
    await serving(world, operator)
    world.run_pods("a", "b")
    del world.live["Deployment", "demo"]
    world.failing = {("apply", "Deployment"): WEBHOOK}
    await operator.tick()
    assert world.condition("Ready") == ("True", "Serving")
    assert world.status["readyReplicas"] == 2
