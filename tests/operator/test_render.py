"""The children as manifests: what pods run, what they may, and what changes them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from fleets import load, policy, replica, seen, smartspec
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import decode_settings
from smartspec_operator import render
from smartspec_operator.replica_pod import serve_arguments
from smartspec_operator.resource import POLICY_FILE, Manifest
from smartspec_operator.world import Failure, Observation, ScalingDecision

SCALE = ScalingDecision(desired=2, replicas=2)
SEEN = Observation(admin_key_version="v1")


def children(scale: ScalingDecision = SCALE, seen: Observation = SEEN, **spec: Any) -> dict[str, Manifest]:
    """The children by kind."""
    found = render.children(smartspec(**spec), seen, policy(tpot_target_seconds=0.04), scale, image="runtime:1")
    return {manifest["kind"]: manifest for manifest in found}


def pod(**spec: Any) -> dict[str, Any]:
    """The pod's spec in the Deployment."""
    found: dict[str, Any] = children(**spec)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(**spec: Any) -> dict[str, Any]:
    """The one container."""
    found: dict[str, Any] = pod(**spec)["containers"][0]
    return found


def flag(name: str, **spec: Any) -> str:
    """The value that the runtime is given for a flag."""
    arguments = container(**spec)["args"]
    return str(arguments[arguments.index(name) + 1])


@pytest.mark.parametrize("kind", ["Deployment", "Service", "ConfigMap"])
def test_every_child_belongs_to_its_resource(kind: str) -> None:
    """The owner reference is what deletes it, and the labels are what finds it."""
    metadata = children()[kind]["metadata"]
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("SmartSpec", "demo", "u-1", True)
    assert metadata["labels"]["app.kubernetes.io/managed-by"] == "smartspec-operator"


def test_pods_meet_the_restricted_profile() -> None:
    """Non-root, nothing to escalate, a read-only root file system, no token of a service account."""
    spec, made = pod(), container()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert made["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    written = {mount["mountPath"] for mount in made["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"/cache", "/tmp"}


def test_the_admin_port_stands_in_no_service() -> None:
    """Clients reach the public port alone."""
    (port,) = children()["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"
    assert {p["name"] for p in container()["ports"]} == {"http", "admin"}


@pytest.mark.parametrize(
    ("speculation", "present", "absent"),
    [
        ({"draft": {"source": "d"}}, ["--draft d"], ["--no-prompt-lookup"]),
        ({"method": "DraftModel", "draft": {"source": "d"}}, ["--draft d", "--no-prompt-lookup"], []),
        ({"method": "PromptLookup"}, ["--policy request"], ["--draft", "--no-prompt-lookup"]),
        ({"method": "Off", "draft": {"source": "d"}}, ["--policy off", "--no-prompt-lookup"], ["--draft"]),
        ({"policy": "Fixed", "maxTokens": 4}, ["--policy fixed", "--num-speculative-tokens 4"], []),
        ({"verification": "Coupled"}, ["--verification coupled"], []),
    ],
)
def test_speculation_becomes_flags(speculation: dict[str, Any], present: list[str], absent: list[str]) -> None:
    """Each method loads and allows exactly what it says."""
    line = " ".join(container(speculation=speculation)["args"])
    assert [text for text in present if text not in line] == []
    assert [text for text in absent if text in line] == []


def test_keys_come_from_secrets_and_never_stand_among_arguments() -> None:
    """Every key is a reference that only the kubelet resolves."""
    reference = {"name": "keys", "key": "api"}
    made = container(
        server={"apiKeySecretRef": reference}, model={"source": "m", "hubTokenSecretRef": {"name": "hub", "key": "t"}}
    )
    sources = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in made["env"] if "valueFrom" in v}
    assert sources == {
        "SMARTSPEC_ADMIN_KEY": {"name": "demo-admin-key", "key": "key"},
        "HF_TOKEN": {"name": "hub", "key": "t"},
    }
    assert [argument for argument in made["args"] if "key" in argument] == [
        "--api-key-file", "/etc/smartspec/api-key/keys",
    ]  # fmt: skip
    assert not any("key" in argument for argument in container()["args"])


def test_clients_keys_are_a_file_that_follows_their_secret() -> None:
    """A variable is read at the start, and a subPath is never brought up to date. Without the Secret no pod starts."""
    made = pod(server={"apiKeySecretRef": {"name": "keys", "key": "api"}})
    (volume,) = [volume for volume in made["volumes"] if volume["name"] == "api-key"]
    (mount,) = [mount for mount in made["containers"][0]["volumeMounts"] if mount["name"] == "api-key"]
    assert volume["secret"] == {"secretName": "keys", "items": [{"key": "api", "path": "keys"}], "optional": False}
    assert mount == {"name": "api-key", "mountPath": "/etc/smartspec/api-key", "readOnly": True}
    assert "api-key" not in str(pod()["volumes"])


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """What kubelet makes of an argument (source: Kubernetes, `third_party/forked/golang/expansion`)."""
    return re.sub(
        r"\$(\$|\(([^)]*)\))",
        lambda found: "$" if found[1] == "$" else variables.get(found[2], found[0]),
        text,
    )


@pytest.mark.parametrize(
    "text", ["x$(HF_TOKEN)", "x$$(HF_TOKEN)", "x$$$(HF_TOKEN)", "$", "a$$b", "x$", "x$(", "~$(A)$"]
)
def test_no_variable_gets_into_arguments(text: str) -> None:
    """The hub's token would stand in the model's public name; what the spec says arrives as it was said."""
    model, draft = {"servedName": f"n{text}", "source": f"m{text}", "revision": f"r{text}"}, {"source": f"d{text}"}
    arguments = container(model=model, speculation={"draft": draft})["args"]
    seen = [expanded(argument, {"HF_TOKEN": "hf_secret", "A": "a"}) for argument in arguments]
    assert seen == serve_arguments(smartspec(model=model, speculation={"draft": draft}))
    assert {f"n{text}", f"m{text}", f"r{text}", f"d{text}"} <= set(seen)
    assert children(model=model)["Deployment"]["metadata"]["annotations"]["smartspec.io/model"] == f"m{text}"


def test_the_policy_is_mounted_as_replicas_read_it() -> None:
    """What the ConfigMap holds parses as settings, under the path that the flag names."""
    text = children()["ConfigMap"]["data"][POLICY_FILE]
    assert decode_settings(text).tpot_target_seconds == 0.04
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert flag("--policy-file") == f"{mounts['policy']}/{POLICY_FILE}"


def test_a_new_policy_does_not_roll_the_pods() -> None:
    """It is pushed while they run: the Deployment is the same before and after."""
    one, two = (
        render.children(smartspec(), SEEN, policy(tpot_target_seconds=t), SCALE, image="i") for t in (0.04, 0.03)
    )
    assert one[2] == two[2]
    assert one[0] != two[0]


REFUSED, SILENT = Failure("/load: HTTP 401", is_key_refused=True), Failure("timeout")


@pytest.mark.parametrize(
    ("deployed", "now", "pods", "version"),
    [
        (None, "v1", {}, "v1"),
        (None, None, {}, None),
        ("v1", "v2", {}, "v1"),
        ("v1", "v2", {"v1": load()}, "v1"),
        ("v1", "v2", {"v1": SILENT}, "v1"),
        ("v1", "v2", {"v1": REFUSED}, "v2"),
        ("v2", "v3", {"v1": REFUSED, "v2": load()}, "v2"),
        ("v1", "v1", {"v1": REFUSED}, "v1"),
        ("v1", None, {"v1": REFUSED}, "v1"),
    ],
)
def test_pods_are_replaced_for_a_new_admin_key_and_for_no_other_edit_of_its_secret(
    deployed: str | None, now: str | None, pods: dict[str, LoadReport | Failure], version: str | None
) -> None:
    """A pod that was made for what is deployed, and refuses the key: then alone it is another one."""
    fleet = [replica(f"pod-{made}", report, admin_key_version=made) for made, report in pods.items()]
    world = seen(*fleet, admin_key_version=now, deployed_key_version=deployed)
    annotations = children(seen=world)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations.get("smartspec.io/admin-key-version") == version


def test_updates_replace_no_replica_before_another_is_ready() -> None:
    """Capacity never falls below what is asked for while the spec rolls through."""
    assert children()["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


@pytest.mark.parametrize(("desired", "replicas", "knows", "made"), [
    (2, 2, True, True), (1, 1, True, False), (1, 2, True, False), (0, 0, True, False), (2, 2, False, False),
])  # fmt: skip
def test_nodes_are_drained_of_one_replica_at_a_time(desired: int, replicas: int, knows: bool, made: bool) -> None:
    """With several replicas; that of a single one would forbid to drain its node, also while another one leaves."""
    world = Observation(known_kinds=frozenset({"PodDisruptionBudget"} if knows else ()))
    found = children(ScalingDecision(desired=desired, replicas=replicas), world)
    assert ("PodDisruptionBudget" in found) is made
    if made:
        budget = found["PodDisruptionBudget"]
        labels = found["Deployment"]["spec"]["selector"]["matchLabels"]
        assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
        assert budget["metadata"]["ownerReferences"] == found["Deployment"]["metadata"]["ownerReferences"]


def test_a_rollout_may_do_without_a_spare_place() -> None:
    """Numbers and percentages are told to the Deployment as they stand in the spec, and roll nothing by themselves."""
    asked = {"template": {"rollout": {"maxSurge": 0, "maxUnavailable": "50%"}}}
    strategy = children(**asked)["Deployment"]["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%", "maxSurge": 0}}
    assert pod(**asked) == pod()


def test_a_replica_has_all_its_grace_to_finish_but_the_lame_duck_and_the_exit() -> None:
    """The drain ends before the kubelet kills."""
    template = {"terminationGracePeriodSeconds": 100}
    assert pod(template=template)["terminationGracePeriodSeconds"] == 100
    least = {"terminationGracePeriodSeconds": 31}
    assert flag("--drain-timeout", template=least) == "1"
    assert int(flag("--drain-timeout", template=template)) + int(flag("--lame-duck", template=template)) < 100


def test_compiling_is_the_users_choice() -> None:
    """Where a start must be short, or the image has no compiler."""
    assert flag("--compile") == "auto"
    assert flag("--compile", model={"source": "m", "compile": "Off"}) == "off"


def test_connections_are_young_enough_for_a_new_replica_to_get_its_share() -> None:
    """A Service balances connections: one that lives for minutes would keep its client from every new replica."""
    assert int(flag("--max-connection-age")) <= 10


def test_ones_own_environment_and_volumes_are_kept() -> None:
    """A variable of ours gives way to the same one in the template; volumes are added."""
    template = {
        "env": [{"name": "HF_HOME", "value": "/models"}, {"name": "X", "value": "1"}],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "weights"}}],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    made = container(template=template)
    assert [v["value"] for v in made["env"] if v["name"] == "HF_HOME"] == ["/models"]
    assert {"name": "X", "value": "1"} in made["env"]
    assert pod(template=template)["volumes"][-1]["name"] == made["volumeMounts"][-1]["name"] == "models"


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({}, {"emptyDir": {}}),
        ({"sizeLimit": "20Gi"}, {"emptyDir": {"sizeLimit": "20Gi"}}),
        ({"claimName": "weights"}, {"persistentVolumeClaim": {"claimName": "weights"}}),
        ({"size": "20Gi"}, {"persistentVolumeClaim": {"claimName": "demo-cache"}}),
    ],
)
def test_the_cache_is_where_the_spec_says(cache: dict[str, str], volume: dict[str, Any]) -> None:
    """An emptyDir, a bounded one, or a claim."""
    assert pod(storage={"cache": cache})["volumes"][0] == {"name": "cache", **volume}


def test_a_cache_of_a_size_is_a_claim_of_the_resources_own() -> None:
    """It goes with its owner; one that is only named is somebody else's, and not touched."""
    cache = {"size": "20Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"}
    claim = children(storage={"cache": cache})["PersistentVolumeClaim"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"], "storageClassName": "fast", "resources": {"requests": {"storage": "20Gi"}},
    }  # fmt: skip
    assert claim["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert "PersistentVolumeClaim" not in children(storage={"cache": {"claimName": "weights"}})


BOTH = {"podMonitor": {"labels": {"release": "p"}}, "inferencePool": {"endpointPicker": "picker", "port": 9}}


def test_integrations_are_made_where_they_are_asked_for_and_known() -> None:
    """Neither alone makes one: a kind that the cluster does not know would fail every reconcile."""
    assert {"PodMonitor", "InferencePool"} & set(children(integrations=BOTH)) == set()
    known = replace(SEEN, known_kinds=frozenset({"PodMonitor"}))
    made = children(seen=known, integrations=BOTH)
    assert "InferencePool" not in made
    assert made["PodMonitor"]["metadata"]["labels"]["release"] == "p"
    assert made["PodMonitor"]["spec"]["podMetricsEndpoints"] == [{"port": "http", "path": "/metrics"}]
    assert "PodMonitor" not in children(seen=known)


def test_a_pool_finds_the_replicas_and_tells_their_kind() -> None:
    """The endpoint picker reads the pods' label; others' pods are not rolled for it."""
    known = replace(SEEN, known_kinds=frozenset({"InferencePool"}))
    made = children(seen=known, integrations=BOTH)
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels["inference.networking.k8s.io/engine-type"] == "smartspec"
    spec = made["InferencePool"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert spec["endpointPickerRef"] == {"name": "picker", "port": {"number": 9}}
    assert "engine-type" not in str(children()["Deployment"])


def test_victims_are_marked_for_the_replicaset_controller() -> None:
    """The mark names the pod and nothing else of it, so that nothing else is taken over."""
    marked = children(scale=ScalingDecision(desired=1, replicas=2, victims=("demo-x",)))["Pod"]
    assert marked["metadata"]["name"] == "demo-x"
    assert set(marked["metadata"]) == {"name", "namespace", "annotations"}
