"""The local cluster: a Deployment's manifest becomes processes, and their state reads as pods'."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from yarl import URL

from smartspec_operator.cluster import NotOursError
from smartspec_operator.local_cluster import LocalCluster
from smartspec_operator.observe import read_pod
from smartspec_operator.resource import ANNOTATION_DELETION_COST
from waiting import until

FAKE = Path(__file__).with_name("fake_runtime.py")
LABELS = {"app.kubernetes.io/instance": "demo"}
OURS = [{"controller": True, "uid": "owner"}]


@dataclass
class Here:
    """A local cluster, and what it last told the front."""

    cluster: LocalCluster
    session: ClientSession
    routes: dict[str, URL]

    async def pods(self) -> list[Any]:
        """The pods' manifests."""
        return list(await self.cluster.list("Pod", "default", LABELS))

    async def describe(self) -> Any:
        """What one routed replica was started with."""
        url = next(iter(self.routes.values()))
        async with self.session.get(url / "describe") as answer:
            return await answer.json()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    """An empty cluster whose pods run the fake runtime; an admin key's Secret exists."""
    routes: dict[str, URL] = {}

    def route(ready: Mapping[str, URL]) -> None:
        routes.clear()
        routes.update(ready)

    async with ClientSession() as session:
        cluster = LocalCluster(
            tmp_path,
            session,
            threads=2,
            route=route,
            now=lambda: datetime.now(UTC),
            runtime=(sys.executable, str(FAKE)),
        )
        await cluster.apply({"kind": "Secret", "metadata": {"name": "demo-admin-key"}, "stringData": {"key": "s3cret"}})
        yield Here(cluster, session, routes)
        await cluster.stop(5)


def deployment(replicas: int = 1, target: str = "model", **pod: Any) -> dict[str, Any]:
    """A Deployment like those that the operator renders."""
    key = {"secretKeyRef": {"name": "demo-admin-key", "key": "key"}}
    container = {
        "name": "smartspec",
        "image": "an-image",
        "args": ["serve", target, "--port", "8000", "--policy-file", "/etc/smartspec/policy/policy.json"],
        "env": [
            {"name": "SMARTSPEC_ADMIN_KEY", "valueFrom": key},
            {"name": "HF_HOME", "value": "/cache/huggingface"},
        ],
        "volumeMounts": [
            {"name": "cache", "mountPath": "/cache"},
            {"name": "policy", "mountPath": "/etc/smartspec/policy"},
        ],
    }
    volumes = [{"name": "cache", "emptyDir": {}}, {"name": "policy", "configMap": {"name": "demo-policy"}}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "demo", "namespace": "default", "labels": LABELS, "ownerReferences": OURS},
        "spec": {
            "replicas": replicas,
            "template": {
                "metadata": {"labels": LABELS},
                "spec": {"containers": [container], "volumes": volumes, **pod},
            },
        },
    }


async def test_a_deployment_becomes_processes_on_loopback_with_what_the_manifest_gives_them(
    here: Here, tmp_path: Path
) -> None:
    """Arguments, the Secret's key and the policy's file arrive; addresses and folders of an image do not."""
    policy = tmp_path / "configmaps" / "demo-policy" / "policy.json"
    await here.cluster.apply({"kind": "ConfigMap", "metadata": {"name": "demo-policy"}, "data": {"policy.json": "{}"}})
    await here.cluster.apply(deployment())
    await until(lambda: here.routes)
    told = await here.describe()
    assert told["environment"]["SMARTSPEC_ADMIN_KEY"] == "s3cret"
    assert told["environment"]["HF_HOME"] != "/cache/huggingface"
    assert told["arguments"]["threads"] == 2
    assert told["arguments"]["host"] == told["arguments"]["admin_host"] == "127.0.0.1"
    assert told["arguments"]["policy_file"] == str(policy)
    assert policy.read_text() == "{}"


async def test_a_pod_reads_as_kubernetes_would_show_it(here: Here) -> None:
    """Ready condition, address and the admin port by name, which is all that an observer needs."""
    await here.cluster.apply(deployment())
    assert (await here.pods())[0]["status"]["phase"] == "Pending"
    await until(lambda: here.routes)
    (pod,) = await here.pods()
    (ready,) = pod["status"]["conditions"]
    assert (ready["type"], ready["status"]) == ("Ready", "True")
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert here.routes == {pod["metadata"]["name"]: URL(f"http://{pod['status']['podIP']}:{ports['http']}")}
    async with here.session.get(f"http://127.0.0.1:{ports['admin']}/ready") as answer:
        assert answer.status == 200
    live = await here.cluster.get("Deployment", "default", "demo")
    assert live is not None
    assert (live["status"]["readyReplicas"], live["status"]["updatedReplicas"]) == (1, 1)


async def test_scaling_up_adds_and_scaling_down_ends_the_marked_pod(here: Here) -> None:
    """The pod that the operator marked goes; it is out of the routes at once."""
    await here.cluster.apply(deployment(2))
    await until(lambda: len(here.routes) == 2)
    victim, other = sorted(here.routes)
    await here.cluster.apply(
        {"kind": "Pod", "metadata": {"name": victim, "annotations": {ANNOTATION_DELETION_COST: "-1000"}}}
    )
    await here.cluster.apply(deployment(1))
    assert set(here.routes) == {other}
    await until(lambda: len(here.cluster.pods) == 1)


async def test_a_new_template_rolls_without_a_moment_unserved(here: Here) -> None:
    """The old replica is routed to until the new one is."""
    await here.cluster.apply(deployment())
    await until(lambda: here.routes)
    (old,) = here.routes
    await here.cluster.apply(deployment(target="newer"))
    assert set(here.routes) == {old}
    assert len(here.cluster.pods) == 2
    await until(lambda: old not in here.routes)
    assert len(here.routes) == 1
    assert (await here.describe())["arguments"]["target"] == "newer"


async def test_what_is_applied_again_changes_nothing(here: Here) -> None:
    """At rest the generation stays and no process is touched."""
    for _ in range(2):
        await here.cluster.apply(deployment())
    live = await here.cluster.get("Deployment", "default", "demo")
    assert live is not None
    assert live["metadata"]["generation"] == 1
    assert len(here.cluster.pods) == 1


async def test_a_crash_shows_in_the_pod(here: Here) -> None:
    """The words an observer of Kubernetes knows, and the reason the process gave."""
    await here.cluster.apply(deployment(target="crash"))
    await until(lambda: here.cluster.pods[0].process.state == "CrashLoopBackOff")  # type: ignore[union-attr]
    (pod,) = await here.pods()
    waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "CrashLoopBackOff"
    assert "error: no weights in crash" in waiting["message"]


async def test_a_crash_counts_from_when_it_happened(here: Here) -> None:
    """How long a pod has not been ready says whether it is given up: not how long ago it was made."""
    await here.cluster.apply(deployment())
    await until(lambda: here.routes)
    (pod,) = here.cluster.pods
    pod.created = datetime(2020, 1, 1, tzinfo=UTC)
    assert pod.process is not None
    assert pod.process.process_id is not None
    os.kill(pod.process.process_id, signal.SIGKILL)
    await until(lambda: not here.routes)
    seen = read_pod((await here.pods())[0])
    assert not seen.ready
    assert (datetime.now(UTC) - seen.since).total_seconds() < 10


async def test_a_missing_secret_is_named_and_the_pod_starts_once_it_comes(here: Here) -> None:
    """As on Kubernetes: the pod waits with the reason, and needs no help when the Secret is there."""
    wanted = deployment()
    wanted["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"] = "other"
    await here.cluster.apply(wanted)
    waiting = (await here.pods())[0]["status"]["containerStatuses"][0]["state"]["waiting"]
    assert waiting == {
        "reason": "CreateContainerConfigError",
        "message": 'SMARTSPEC_ADMIN_KEY: secret "other" not found',
    }
    await here.cluster.apply({"kind": "Secret", "metadata": {"name": "other"}, "stringData": {"key": "k"}})
    await until(lambda: here.routes)
    assert len(here.cluster.pods) == 1


async def test_a_file_of_a_secret_follows_it(here: Here, tmp_path: Path) -> None:
    """A pod that mounts a key waits for it, finds it under the flag's path, and reads the next one there, too."""
    file = tmp_path / "secrets" / "mine" / "keys"
    wanted = deployment()
    spec = wanted["spec"]["template"]["spec"]
    items = [{"key": "k", "path": "keys"}]
    spec["volumes"].append({"name": "api-key", "secret": {"secretName": "mine", "items": items, "optional": False}})
    spec["containers"][0]["volumeMounts"].append({"name": "api-key", "mountPath": "/etc/smartspec/api-key"})
    spec["containers"][0]["args"] += ["--api-key-file", "/etc/smartspec/api-key/keys", "--served-name", "x$$(HF_TOKEN)"]
    await here.cluster.apply(wanted)
    for secret, problem in (({}, 'secret "mine" not found'), ({"other": "?"}, "couldn't find key k in Secret mine")):
        if secret:
            await here.cluster.apply({"kind": "Secret", "metadata": {"name": "mine"}, "stringData": secret})
        waiting = (await here.pods())[0]["status"]["containerStatuses"][0]["state"]["waiting"]
        assert waiting["message"] == f"api-key: {problem}"
    for key in ("first", "second"):
        await here.cluster.apply({"kind": "Secret", "metadata": {"name": "mine"}, "stringData": {"k": key}})
        await until(lambda: here.routes)
        told = (await here.describe())["arguments"]
        assert told["api_key_file"] == str(file)
        assert told["served_name"] == "x$(HF_TOKEN)"
        assert (file.read_text(), file.stat().st_mode & 0o077) == (key, 0)
    assert len(here.cluster.pods) == 1


async def test_an_object_of_another_owner_is_left_alone(here: Here) -> None:
    """The same refusal as in a cluster."""
    theirs = deployment()
    theirs["metadata"]["ownerReferences"] = [{"controller": True, "uid": "somebody"}]
    await here.cluster.apply(theirs)
    with pytest.raises(NotOursError, match="Deployment demo"):
        await here.cluster.apply(deployment(2))


async def test_stopping_ends_all_and_starts_none(here: Here) -> None:
    """After `stop` nothing runs, whatever is applied."""
    await here.cluster.apply(deployment(2))
    await until(lambda: len(here.routes) == 2)
    await here.cluster.stop(5)
    assert here.routes == {}
    assert here.cluster.pods == ()
    await here.cluster.apply(deployment(3))
    assert here.cluster.pods == ()
