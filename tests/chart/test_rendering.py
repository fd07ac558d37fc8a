"""What `helm template` makes of many values: every object of every rendering is one that a careful cluster takes."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from charts import CHART, NAMESPACE, NEW, OLD, VALUES, Manifest, helm, kinds, one, render, template
from smartspec_operator.resource import FIELD_MANAGER, LABEL_MANAGED_BY, LABEL_NAME

LONG = "a" * 53
CLUSTER_SCOPED = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


@pytest.fixture(params=[NEW, OLD])
def kubernetes(request: pytest.FixtureRequest) -> str:
    """The version of Kubernetes that is rendered for."""
    return str(request.param)


@pytest.fixture(params=VALUES)
def rendered(request: pytest.FixtureRequest, kubernetes: str) -> list[Manifest]:
    """All objects of one set of values."""
    return render(VALUES[request.param], kubernetes=kubernetes)


def pod_specs(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The spec of every pod that comes of *manifests*."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            yield manifest["spec"]["template"]["spec"]


def test_helm_lints_it() -> None:
    """Not one warning, with the defaults and with everything."""
    helm("lint", "--strict", str(CHART))
    helm("lint", "--strict", str(CHART), "--set", "replicas=2,monitoring.podMonitors.operator=true")


def test_objects_are_named_placed_and_labelled(rendered: list[Manifest]) -> None:
    """Each has the recommended labels, a name that fits a label, one place, and no double."""
    keys = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in rendered]
    assert len(keys) == len(set(keys))
    for manifest in rendered:
        metadata = manifest["metadata"]
        assert NAME.fullmatch(metadata["name"]), metadata["name"]
        assert len(metadata["name"]) <= 63
        assert ("namespace" in metadata) is (manifest["kind"] not in CLUSTER_SCOPED), manifest
        assert all(len(value) <= 63 and LABEL_VALUE.fullmatch(value) for value in metadata["labels"].values())
        parts = ("name", "instance", "component", "part-of", "version", "managed-by")
        assert {f"app.kubernetes.io/{part}" for part in parts} <= metadata["labels"].keys()
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"


def test_pods_meet_the_restricted_profile(rendered: list[Manifest]) -> None:
    """Non-root, no privileges, no capabilities, the default seccomp profile, harmless volumes; and a read-only root."""
    specs = list(pod_specs(rendered))
    assert len(specs) == 2
    for spec in specs:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        allowed = {"configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim", "ephemeral", "downwardAPI"}
        assert all(volume.keys() - {"name"} <= allowed for volume in spec.get("volumes", ()))
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container.get("ports", ()))
            assert "memory" in container["resources"].get("limits", {})


def test_selectors_find_their_pods_and_no_replicas(rendered: list[Manifest]) -> None:
    """What selects the operator selects its pods, and never those of a SmartSpec, whatever its name."""
    deployment = one(rendered, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels[LABEL_NAME] != "smartspec"
    assert labels[LABEL_MANAGED_BY] != FIELD_MANAGER
    own = [deployment["spec"]["selector"]["matchLabels"]]
    own += [m["spec"]["selector"]["matchLabels"] for m in rendered if m["kind"] == "PodDisruptionBudget"]
    own += [
        m["spec"]["podSelector"]["matchLabels"]
        for m in rendered
        if m["kind"] == "NetworkPolicy" and not m["metadata"]["name"].endswith("-admin")
    ]
    assert all(selector.items() <= labels.items() for selector in own)
    (test,) = [m for m in rendered if m["kind"] == "Pod"]
    assert not own[0].items() <= test["metadata"]["labels"].items()


@pytest.mark.parametrize("release", [LONG, "1st", "a" * 42 + "-b"])
def test_any_release_name_will_do(release: str) -> None:
    """Names that are derived of the longest still fit."""
    everything = VALUES["policies"] | VALUES["monitoring"] | {"replicas": 2}
    test_objects_are_named_placed_and_labelled(render(everything, release=release))


@pytest.mark.parametrize("word", ["2024", "on", "yes", "null", "0x1f", "1e3"])
def test_a_name_that_looks_like_something_else_stays_a_name(word: str) -> None:
    """A number, a truth value or nothing, where YAML reads it: all objects are those of any other name."""

    def made(name: str) -> list[str]:
        """All objects under *name*, as JSON; checksums are of the text, and differ with it."""
        monitoring = {"podMonitors": {"operator": True, "replicas": True}, "dashboard": {"enabled": True}}
        values = {
            "replicas": 2,
            "watchNamespace": name,
            "serviceAccount": {"name": name},
            "priorityClassName": name,
            "imagePullSecrets": [{"name": name}],
            "rbac": {"adminKeys": "named", "adminKeyNames": [name]},
            "networkPolicy": {"replicaNamespaces": [name, "other"]},
            "podLabels": {"team": name},
            "monitoring": monitoring | {"dashboard": {"enabled": True, "namespace": name}},
        }
        done = template(values, release=name, namespace=name)
        assert done.returncode == 0, done.stderr
        text = re.sub(r"checksum/\w+: \w+", "", done.stdout)
        return [json.dumps(document, sort_keys=True) for document in yaml.safe_load_all(text) if document]

    assert made(word) == [document.replace("a-word", word) for document in made("a-word")]


def test_a_budget_needs_two(kubernetes: str) -> None:
    """With one replica a PodDisruptionBudget would block its node's maintenance; its version is one the server has."""
    assert "PodDisruptionBudget" not in kinds(render(kubernetes=kubernetes))
    budget = one(render({"replicas": 2}, kubernetes=kubernetes), "PodDisruptionBudget")
    assert budget["apiVersion"] == {NEW: "policy/v1", OLD: "policy/v1beta1"}[kubernetes]


def test_what_the_operator_finds_out_at_its_start_rolls_it() -> None:
    """Other rights or another CRD give other pods; the same values give the same pods."""

    def pods(**values: Any) -> Any:
        return one(render(values), "Deployment")["spec"]["template"]

    assert pods(replicas=2)["metadata"] == pods()["metadata"]
    assert pods(rbac={"adminKeys": "read"}) != pods()
    assert pods(crds={"enabled": False}) != pods()
    assert pods(timing={"tickSeconds": 1}) != pods()


def test_network_policies_name_ports_that_there_are() -> None:
    """The operator's probe port, and the replicas' ports as the operator's own code names them."""
    rendered = render(VALUES["policies"])
    (container,) = one(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    own = one(rendered, "NetworkPolicy", "-operator")
    assert {port["name"] for port in container["ports"]} >= {
        rule["port"] for rule in own["spec"]["ingress"][0]["ports"]
    }
    replicas = [m for m in rendered if m["kind"] == "NetworkPolicy" and m["metadata"]["name"].endswith("-admin")]
    assert {m["metadata"]["namespace"] for m in replicas} == {"models", "more"}
    for policy in replicas:
        public, admin = policy["spec"]["ingress"]
        assert "from" not in public
        assert [port["port"] for port in public["ports"] + admin["ports"]] == ["http", "admin"]
        (peer,) = admin["from"]
        assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}


def test_one_namespace_once() -> None:
    """A namespace that is watched and listed has one policy, not two."""
    rendered = render(VALUES["policies of one namespace"])
    assert len([m for m in rendered if m["kind"] == "NetworkPolicy"]) == 2
