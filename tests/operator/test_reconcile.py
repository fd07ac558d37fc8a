"""The story as a whole, over a cluster and replicas in memory: what is written, in which order, and what is not."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fleets import NOW, load
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings, decode_settings
from smartspec_operator.cluster import NotOursError, controller_of
from smartspec_operator.observe import observe, read_pod
from smartspec_operator.reconcile import reconcile
from smartspec_operator.reported import ScalingRecord, Status, as_manifest
from smartspec_operator.resource import (
    ANNOTATION_DELETION_COST,
    POLICY_FILE,
    InvalidSpecError,
    Manifest,
    SmartSpec,
    parse,
)
from smartspec_operator.world import Due, Failure, Pod, Timing


class MemoryCluster:
    """A `Cluster` in memory; `applied` are the kinds in the order in which they were written."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.applied: list[str] = []
        self.known: set[str] = set()
        self.refused: set[str] = set()
        self.is_closed = False

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object."""
        return self.objects.get((kind, name))

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> Sequence[Manifest]:
        """All of a kind."""
        return [live for (of, _), live in self.objects.items() if of == kind]

    async def has_key(self, namespace: str, name: str, key: str) -> bool | None:
        """Whether there is such a Secret; nothing, where Secrets may not be read."""
        live = self.objects.get(("Secret", name))
        return None if self.is_closed else live is not None and key in live.get("data", {})

    async def create(self, manifest: Manifest) -> None:
        """Keep it, unless there is one: as the API server does it, beside what was observed."""
        live = self.objects.get((manifest["kind"], manifest["metadata"]["name"]))
        if live is None:
            await self.apply(manifest)
        elif controller_of(live) != controller_of(manifest):
            raise NotOursError("Secret exists")

    async def knows(self, kind: str) -> bool:
        """Only Kubernetes' own."""
        return kind in self.known

    async def check(self, manifest: Manifest) -> None:
        """Refuse what is in `refused`."""
        if manifest["kind"] in self.refused:
            raise NotOursError(f"{manifest['kind']} is not ours")

    async def delete(self, manifest: Manifest) -> None:
        """Remove it."""
        del self.objects[manifest["kind"], manifest["metadata"]["name"]]

    async def apply(self, manifest: Manifest) -> None:
        """Keep it, encoded as the API server does it for Secrets; nothing when it is so already."""
        live = dict(manifest)
        if "stringData" in live:
            text = live.pop("stringData")
            live["data"] = {key: base64.b64encode(value.encode()).decode() for key, value in text.items()}
        key = (live["kind"], live["metadata"]["name"])
        if self.objects.get(key) != live:
            self.objects[key] = live
            self.applied.append(live["kind"])

    def add_pod(self, name: str, *, ready: bool = True) -> None:
        """A pod as the controllers make it."""
        self.objects["Pod", name] = {
            "metadata": {"name": name, "creationTimestamp": "2026-03-01T11:00:00Z"},
            "spec": {"containers": [{"ports": [{"name": "admin", "containerPort": 8001}]}]},
            "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": str(ready)}]},
        }


class MemoryReplicas:
    """A `Replicas` in memory: each pod's report, and what it was told."""

    def __init__(self, **reports: LoadReport | Failure) -> None:
        self.reports = reports
        self.pushed: list[tuple[str, PolicySettings]] = []
        self.drained: list[str] = []

    async def load(self, owner: SmartSpec, pod: Pod) -> LoadReport | Failure:
        """The report."""
        return self.reports[pod.name]

    async def push(self, owner: SmartSpec, pod: Pod, settings: PolicySettings) -> Failure | None:
        """Take the policy."""
        self.pushed.append((pod.name, settings))
        return None

    async def drain(self, owner: SmartSpec, pod: Pod) -> Failure | None:
        """Drain."""
        self.drained.append(pod.name)
        return None


def run(
    cluster: MemoryCluster, fleet: MemoryReplicas | None = None, /, *, status: Status | None = None, **spec: Any
) -> Status:
    """One reconcile of a resource with *spec*, and the *status* that was written last."""
    body = {
        "metadata": {"name": "demo", "uid": "u", "generation": 1},
        "spec": {"model": {"source": "org/model"}, **spec},
        "status": as_manifest(status or Status()),
    }
    made = reconcile(
        parse(body), cluster, fleet or MemoryReplicas(), now=NOW, image="runtime:1", new_key=lambda: "k" * 40,
        timing=Timing(), due=Due(),
    )  # fmt: skip
    return asyncio.run(made)


@pytest.mark.parametrize(("node", "until", "phase", "expected"), [
    ("n1", "2026-03-01T12:00:30Z", "Running", True),
    ("n1", "2026-03-01T11:59:59Z", "Running", False),
    ("n1", "2026-03-01T12:00:30Z", "Failed", False),
    (None, "2026-03-01T12:00:30Z", "Pending", False),
    ("n1", None, "Running", False),
])  # fmt: skip
def test_a_pod_that_ends_makes_room_within_its_time(
    node: str | None, until: str | None, phase: str, expected: bool
) -> None:
    """One that never had a place leaves none, nor does one that has ended; one of a lost node stays for ever."""
    cluster = MemoryCluster()
    cluster.add_pod("a")
    made = cluster.objects["Pod", "a"]
    made["status"]["phase"] = phase
    made["spec"] |= {} if node is None else {"nodeName": node}
    made["metadata"] |= {} if until is None else {"deletionTimestamp": until}
    owner = parse({"metadata": {"name": "demo", "uid": "u"}, "spec": {"model": {"source": "org/model"}}})
    seen = asyncio.run(observe(owner, cluster, MemoryReplicas(a=load()), NOW))
    assert seen.makes_room is expected


def test_a_first_reconcile_makes_every_child_in_order() -> None:
    """The key comes first, because pods name its version; what pods mount comes before them."""
    cluster = MemoryCluster()
    run(cluster)
    assert cluster.applied == ["Secret", "ConfigMap", "Service", "Deployment"]
    deployment = cluster.objects["Deployment", "demo"]
    assert "smartspec.io/admin-key-version" in deployment["spec"]["template"]["metadata"]["annotations"]


def test_a_second_reconcile_writes_nothing() -> None:
    """Level, not edge: the same world and spec give the same manifests."""
    cluster = MemoryCluster()
    run(cluster)
    cluster.applied.clear()
    run(cluster)
    assert cluster.applied == []


def test_a_key_of_ones_own_is_not_generated() -> None:
    """A Secret that is referred to but missing is waited for, never made."""
    cluster = MemoryCluster()
    run(cluster, server={"adminKeySecretRef": {"name": "mine", "key": "k"}})
    assert "Secret" not in cluster.applied


def test_a_key_of_somebody_else_is_not_taken() -> None:
    """A Secret of the generated name that another put there would open the admin ports to him."""
    cluster = MemoryCluster()
    cluster.objects["Secret", "demo-admin-key"] = {"metadata": {"name": "demo-admin-key"}, "data": {"key": "aGVsbG8="}}
    with pytest.raises(NotOursError):
        run(cluster)
    assert cluster.applied == []


def test_a_key_taken_out_of_its_secret_is_told() -> None:
    """The operator may not write Secrets that exist: it says what to do, and mends it when that was done."""
    cluster = MemoryCluster()
    run(cluster)
    cluster.objects["Secret", "demo-admin-key"]["data"] = {}
    degraded = run(cluster).condition("Degraded")
    assert degraded is not None
    assert (degraded.status, degraded.reason) == ("True", "SecretMissing")
    assert "delete the Secret" in degraded.message
    del cluster.objects["Secret", "demo-admin-key"]
    healthy = run(cluster).condition("Degraded")
    assert healthy is not None
    assert healthy.status == "False"


@pytest.mark.parametrize(
    ("data", "is_closed", "phase", "reason"),
    [
        (None, False, "Pending", "SecretMissing"),
        ({}, False, "Pending", "SecretMissing"),
        ({"api": "aGVsbG8="}, False, "Pending", None),
        (None, True, "Pending", None),
        (None, False, "Running", None),
    ],
)
def test_a_missing_api_key_is_told_while_a_pod_waits_for_it(
    data: dict[str, str] | None, is_closed: bool, phase: str, reason: str | None
) -> None:
    """Kubelet says of a file that cannot be mounted only ContainerCreating; a replica that runs has its keys."""
    cluster = MemoryCluster()
    cluster.is_closed = is_closed
    cluster.add_pod("a", ready=False)
    if phase == "Pending":
        waiting = [{"state": {"waiting": {"reason": "ContainerCreating"}}}]
        cluster.objects["Pod", "a"]["status"] = {"phase": phase, "containerStatuses": waiting}
    if data is not None:
        cluster.objects["Secret", "keys"] = {"metadata": {"name": "keys"}, "data": data}
    spec = {"model": {"source": "m"}, "server": {"apiKeySecretRef": {"name": "keys", "key": "api"}}}
    body = {"metadata": {"name": "demo"}, "spec": spec}
    world = asyncio.run(observe(parse(body), cluster, MemoryReplicas(a=load()), NOW))
    problem = world.replicas[0].pod.problem
    assert (None if problem is None else problem.reason) == reason
    assert problem is None or problem.message.startswith("spec.server.apiKeySecretRef: ")


def test_an_invalid_spec_writes_nothing() -> None:
    """Not even a child that would be right: half-built is worse than told."""
    cluster = MemoryCluster()
    with pytest.raises(InvalidSpecError, match=r"spec\.speculation\.draft"):
        run(cluster, speculation={"method": "DraftModel"})
    assert cluster.applied == []


def test_the_policy_goes_to_whoever_runs_an_older_one() -> None:
    """Those that have it are left alone, those that do not answer are not waited for."""
    cluster = MemoryCluster()
    run(cluster, replicas=3)
    for name in ("old", "new", "silent"):
        cluster.add_pod(name)
    replicas = MemoryReplicas(old=load(generation=0), new=load(generation=1), silent=Failure("timeout"))
    run(cluster, replicas, replicas=3)
    kept = decode_settings(cluster.objects["ConfigMap", "demo-policy"]["data"][POLICY_FILE])
    assert [(name, settings.generation) for name, settings in replicas.pushed] == [("old", kept.generation)]


def test_what_is_refused_leaves_nothing_half_built() -> None:
    """One child that cannot be keeps all others from being made, the key included."""
    cluster = MemoryCluster()
    cluster.refused = {"Deployment"}
    with pytest.raises(NotOursError):
        run(cluster)
    assert cluster.applied == []


def test_a_replica_that_loads_is_not_told() -> None:
    """It has read the ConfigMap, and has no engine that could take a policy: it would answer 503 every time."""
    cluster = MemoryCluster()
    run(cluster, replicas=2)
    for name in ("loading", "draining"):
        cluster.add_pod(name)
    replicas = MemoryReplicas(loading=load(state="loading"), draining=load(state="draining"))
    run(cluster, replicas, replicas=2)
    assert replicas.pushed == []


def test_integrations_that_are_asked_for_no_more_are_removed() -> None:
    """Only those that are ours; without being asked for, a kind is left alone."""
    cluster = MemoryCluster()
    cluster.known = {"PodMonitor"}
    run(cluster, integrations={"podMonitor": {}})
    assert cluster.applied[-2:] == ["Deployment", "PodMonitor"]
    theirs = {"metadata": {"name": "theirs", "ownerReferences": [{"uid": "other", "controller": True}]}}
    cluster.objects["PodMonitor", "theirs"] = theirs
    run(cluster)
    assert [name for kind, name in cluster.objects if kind == "PodMonitor"] == ["theirs"]


@pytest.mark.parametrize("nonsense", ["{}", "[", '{"generation": 0, "policy": "off"}'])
def test_a_policy_that_somebody_wrote_is_none_of_ours(nonsense: str) -> None:
    """What the operator writes has a number: anything else is as good as lost, and decided anew at once."""
    cluster = MemoryCluster()
    run(cluster, slo={"tpotSeconds": 0.05})
    cluster.objects["ConfigMap", "demo-policy"]["data"] = {POLICY_FILE: nonsense}
    body = {"metadata": {"name": "demo"}, "spec": {"model": {"source": "m"}}}
    assert asyncio.run(observe(parse(body), cluster, MemoryReplicas(), NOW)).history.settings is None


def test_a_pod_that_only_waits_is_told_apart_by_its_claim() -> None:
    """A node, no address, for minutes: a ReadWriteOnce claim may be why."""
    for mode, shared in (("ReadWriteOnce", False), ("ReadWriteMany", True)):
        cluster = MemoryCluster()
        cluster.objects["PersistentVolumeClaim", "weights"] = {"spec": {"accessModes": [mode]}}
        cluster.add_pod("a", ready=False)
        pod = cluster.objects["Pod", "a"]
        pod["spec"]["nodeName"], pod["status"]["podIP"] = "n1", None
        body = {"metadata": {"name": "demo"}, "spec": {"model": {"source": "m"}}}
        body["spec"]["storage"] = {"cache": {"claimName": "weights"}}
        world = asyncio.run(observe(parse(body), cluster, MemoryReplicas(), NOW))
        assert world.shared_cache is shared
        assert world.replicas[0].pod.problem is not None
        assert world.replicas[0].pod.problem.reason == "Stuck"


def test_a_decision_stands_though_the_status_was_never_written() -> None:
    """The Deployment got the second replica, and its record reaches the status with the next write."""
    cluster, spec = MemoryCluster(), {"autoscaling": {"maxReplicas": 4}}
    before = ScalingRecord(time="2026-03-01T09:00:00Z", from_replicas=2, to_replicas=1, reason="Spare")
    old = run(cluster, status=Status(scaling_history=(before,)), **spec)
    cluster.add_pod("a")
    queue = load(num_requests_running=8, num_requests_waiting=9, longest_wait_seconds=3.0)
    lost = run(cluster, MemoryReplicas(a=queue), status=old, **spec)
    assert [record.reason for record in lost.scaling_history] == ["Spare", "Queue"]
    cluster.add_pod("b", ready=False)
    again = run(cluster, MemoryReplicas(a=load(), b=load(state="loading")), status=old, **spec)
    assert cluster.objects["Deployment", "demo"]["spec"]["replicas"] == 2
    assert again.scaling_history == lost.scaling_history


def test_a_pod_that_has_ended_is_no_replica() -> None:
    """Nobody asks it or counts it, for its ReplicaSet replaces it; why it ended is told until that has happened."""
    cluster = MemoryCluster()
    run(cluster, replicas=2)
    for name, created, phase in (("a", "11:00", "Running"), ("b", "11:52", "Failed"), ("c", "11:55", "Failed"),
                                 ("d", "11:58", "Succeeded")):  # fmt: skip
        cluster.add_pod(name, ready=phase == "Running")
        pod = cluster.objects["Pod", name]
        pod["metadata"]["creationTimestamp"] = f"2026-03-01T{created}:00Z"
        pod["status"] |= {"phase": phase, "reason": "Evicted", "message": f"memory pressure on {name}'s node"}
    few = run(cluster, MemoryReplicas(a=load()), replicas=2)
    degraded = few.condition("Degraded")
    assert few.replicas == 1
    assert degraded is not None
    assert (degraded.reason, degraded.message) == ("Evicted", "c: memory pressure on c's node")
    cluster.add_pod("e")
    enough = run(cluster, MemoryReplicas(a=load(), e=load()), replicas=2).condition("Degraded")
    assert enough is not None
    assert enough.status == "False"


def test_a_pod_that_ended_long_ago_explains_nothing() -> None:
    """It lies there for days: a replica that is missing today is another story."""
    cluster = MemoryCluster()
    run(cluster)
    cluster.add_pod("a", ready=False)
    cluster.objects["Pod", "a"]["status"] |= {"phase": "Failed", "reason": "Evicted"}
    degraded = run(cluster).condition("Degraded")
    assert degraded is not None
    assert degraded.status == "False"


def test_a_victim_that_works_is_marked_to_go_last() -> None:
    """It stays deployed, behind others that are not ready, until it has answered; the mark comes before the number."""
    cluster = MemoryCluster()
    run(cluster, replicas=2)
    cluster.add_pod("stays")
    cluster.add_pod("leaves", ready=False)
    pod = cluster.objects["Pod", "leaves"]
    pod["status"]["conditions"][0]["lastTransitionTime"] = "2026-03-01T11:59:00Z"
    works = load(state="draining", num_requests_running=1)
    for report, cost, deployed in ((works, "1000", 2), (load(state="draining"), "-1000", 1)):
        cluster.objects["Pod", "leaves"] = pod
        run(cluster, MemoryReplicas(stays=load(), leaves=report), replicas=1)
        assert cluster.objects["Pod", "leaves"]["metadata"]["annotations"][ANNOTATION_DELETION_COST] == cost
        assert cluster.objects["Deployment", "demo"]["spec"]["replicas"] == deployed
    assert cluster.applied[-2:] == ["Pod", "Deployment"]


def test_victims_are_marked_and_drained_once() -> None:
    """Fewer replicas: the idle one drains, its pod is marked, and the Deployment waits for it."""
    cluster = MemoryCluster()
    run(cluster, replicas=2)
    for name in ("busy", "idle"):
        cluster.add_pod(name)
    replicas = MemoryReplicas(busy=load(num_requests_running=3), idle=load())
    run(cluster, replicas, replicas=1)
    assert replicas.drained == ["idle"]
    assert cluster.objects["Deployment", "demo"]["spec"]["replicas"] == 2
    replicas = MemoryReplicas(busy=load(num_requests_running=3), idle=load(state="draining"))
    cluster.add_pod("idle", ready=False)
    run(cluster, replicas, replicas=1)
    assert replicas.drained == []
    assert cluster.objects["Deployment", "demo"]["spec"]["replicas"] == 1


POD: dict[str, Any] = {
    "metadata": {"name": "p", "creationTimestamp": "2026-03-01T11:00:00Z"},
    "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8000}]}]},
}


@pytest.mark.parametrize(
    ("address", "url"), [("10.0.0.1", "http://10.0.0.1:8001"), ("fd00::1", "http://[fd00::1]:8001")]
)
def test_a_pods_admin_port_is_the_declared_one(address: str, url: str) -> None:
    """By the name of the container's port, in IPv4 and IPv6; none before there is an address."""
    ports = [{"name": "http", "containerPort": 8000}, {"name": "admin", "containerPort": 8001}]
    pod = {**POD, "spec": {"containers": [{"name": "sidecar"}, {"ports": ports}]}}
    assert read_pod({**pod, "status": {"podIP": address}}).admin_url == url
    assert read_pod(pod).admin_url is None
