"""Which reconcile runs on what: edits and ticks that overlap, what is forgotten, and when the controller is alive."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from smartspec_operator import controller
from smartspec_operator.controller import Controller
from smartspec_operator.keys import SECRET_SECONDS
from smartspec_operator.kube import Api
from smartspec_operator.metrics import Metrics
from smartspec_operator.reported import Status
from smartspec_operator.resource import InvalidSpecError, Manifest, SmartSpec
from smartspec_operator.snapshot import KubernetesCluster
from smartspec_operator.world import Timing


class Server(Api):
    """SmartSpecs in memory, with the status that was written; nothing else is there."""

    def __init__(self) -> None:
        self.live: dict[str, dict[str, Any]] = {}
        self.children: Sequence[Manifest] = []
        self.secret: Manifest | None = None

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object."""
        return self.secret if kind == "Secret" else self.live.get(name) if kind == "SmartSpec" else None

    async def knows(self, kind: str) -> bool:
        """Only Kubernetes' own."""
        return False

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> Sequence[Manifest]:
        """All of them."""
        return list(self.live.values()) if kind == "SmartSpec" else self.children

    async def patch(
        self, kind: str, namespace: str, name: str, patch: Mapping[str, Any], subresource: str = ""
    ) -> None:
        """A merge patch of the status, of which only the first level is merged."""
        live = self.live[name]
        self.live[name] = {**live, "status": {**live.get("status", {}), **patch["status"]}}

    async def create(self, manifest: Manifest) -> None:
        """An Event: nobody reads it here."""

    async def merge(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """The same Event once more."""
        return manifest


def body(generation: int = 1, replicas: int = 0) -> dict[str, Any]:
    """A SmartSpec with so many replicas in its status."""
    metadata = {"name": "demo", "namespace": "ns", "uid": "u1", "generation": generation}
    return {"metadata": metadata, "spec": {"model": {"source": "org/m"}}, "status": {"replicas": replicas}}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Generation and reported replicas that each reconcile was given; each reports one replica more."""
    found: list[tuple[int, int]] = []

    async def reconcile(owner: SmartSpec, *_: Any, **__: Any) -> Status:
        found.append((owner.generation, owner.status.replicas))
        return Status(observed_generation=owner.generation, replicas=owner.status.replicas + 1)

    monkeypatch.setattr(controller, "reconcile", reconcile)
    return found


@pytest.fixture
def server() -> Server:
    """One with no SmartSpec yet."""
    return Server()


@pytest.fixture
def one(server: Server) -> Controller:
    """A controller that is told when to tick."""
    cluster = KubernetesCluster(server, None)
    return Controller(cluster, None, Metrics(), image="image", timing=Timing())  # type: ignore[arg-type]


async def answered(one: Controller) -> None:
    """Let it answer the edits that came."""
    task = asyncio.create_task(one._answer_edits())
    await asyncio.sleep(0.01)
    task.cancel()


async def test_an_edit_takes_nothing_back(one: Controller, server: Server, seen: list[tuple[int, int]]) -> None:
    """Its event may be older than what was reported since: the status that counts is the API server's."""
    server.live["demo"] = body()
    await one.tick()
    event, server.live["demo"] = body(2), {**server.live["demo"], "metadata": body(2)["metadata"]}
    one.edited(event)
    await answered(one)
    assert seen == [(1, 0), (2, 1)]
    assert server.live["demo"]["status"]["replicas"] == 2


async def test_an_edit_that_a_tick_has_seen_is_answered(
    one: Controller, server: Server, seen: list[tuple[int, int]]
) -> None:
    """It is not carried out a second time."""
    server.live["demo"] = body(2)
    one.edited(body(2))
    await one.tick()
    await answered(one)
    assert seen == [(2, 0)]


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The generations that were tried, and refused."""
    found: list[int] = []

    async def reconcile(owner: SmartSpec, *_: Any, **__: Any) -> Status:
        found.append(owner.generation)
        raise InvalidSpecError("spec.template.env: no")

    monkeypatch.setattr(controller, "reconcile", reconcile)
    return found


async def test_what_was_refused_is_left_alone(one: Controller, server: Server, refusals: list[int]) -> None:
    """Tick after tick nothing is asked of the API server for it, until its time has come."""
    server.live["demo"] = body()
    for _ in range(5):
        await one.tick()
    assert refusals == [1]
    (pace,) = one._paces.values()
    assert pace.refusal is not None
    pace.refusal = replace(pace.refusal, until=time.monotonic())
    await one.tick()
    assert refusals == [1, 1]
    assert pace.refusal.times == 2


async def test_an_edit_of_what_was_refused_is_tried_at_once(
    one: Controller, server: Server, refusals: list[int]
) -> None:
    """By its event, or by the next tick."""
    server.live["demo"] = body()
    await one.tick()
    server.live["demo"] = body(2)
    one.edited(body(2))
    await answered(one)
    server.live["demo"] = body(3)
    await one.tick()
    await one.tick()
    assert refusals == [1, 2, 3]


async def test_what_was_refused_is_tried_when_what_it_has_changes(
    one: Controller, server: Server, refusals: list[int]
) -> None:
    """A child that went, or the Secret that it refers to."""
    server.live["demo"] = body() | {
        "spec": {"model": {"source": "m"}, "server": {"adminKeySecretRef": {"name": "s", "key": "k"}}}
    }
    labels = {"app.kubernetes.io/name": "smartspec", "app.kubernetes.io/instance": "demo"}
    child: Manifest = {
        "metadata": {"name": "demo", "namespace": "ns", "uid": "c", "generation": 1, "labels": labels},
        "spec": {"containers": []},
    }
    secret = {"metadata": {"uid": "s", "resourceVersion": "1"}}
    server.children, server.secret = [child], secret
    for _ in range(2):
        await one.tick()
    assert refusals == [1]
    server.children = []
    for _ in range(2):
        await one.tick()
    assert refusals == [1, 1]
    one._cluster.secrets._read.clear()
    server.secret = {"metadata": {"uid": "s", "resourceVersion": "2"}}
    for _ in range(2):
        await one.tick()
    assert refusals == [1, 1, 1]


async def test_an_edit_of_what_is_gone_does_nothing(
    one: Controller, server: Server, seen: list[tuple[int, int]]
) -> None:
    """Or of what was made anew under the same name: that has an event of its own."""
    server.live["demo"] = body()
    await one.tick()
    del server.live["demo"]
    one.edited(body(2))
    await answered(one)
    other = body()
    other["metadata"]["uid"] = "u2"
    server.live["demo"] = other
    one.edited(body(2))
    await answered(one)
    assert seen == [(1, 0)]


async def test_a_long_tick_that_gets_on_is_alive(one: Controller, server: Server, seen: list[tuple[int, int]]) -> None:
    """Where the API server is slow, each resource may take seconds, and all of them minutes."""
    one.moved = time.monotonic() - 60
    assert not one.is_alive
    server.live["demo"] = body()
    await one._reconcile(server.live["demo"], one._cluster.snapshot(), at_once=False)
    assert one.is_alive


async def test_who_is_gone_is_forgotten() -> None:
    """Agreements go with their SmartSpec, Secrets when they are not trusted any more; what else is known stays."""

    class Taking(Server):
        async def apply(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
            return manifest

    cluster = KubernetesCluster(Taking(), None)
    for uid in ("u1", "u2"):
        metadata = {"name": uid, "namespace": "ns", "ownerReferences": [{"uid": uid, "controller": True}]}
        await cluster.snapshot().apply({"kind": "ConfigMap", "metadata": metadata})
    ages = [("a", SECRET_SECONDS), ("b", 2 * SECRET_SECONDS)]
    cluster.secrets._read = {("ns", name): (time.monotonic() - age, None) for name, age in ages}
    cluster.forget({"u1"})
    assert [name for _, _, name in cluster._agreed] == ["u2"]
    assert list(cluster.secrets._read) == [("ns", "a")]
