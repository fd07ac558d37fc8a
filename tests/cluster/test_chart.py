"""The chart on a real API server of its own: install, upgrade, uninstall in any order, and what the operator may do.

No node is needed: what runs in pods is tested elsewhere. It prints the operator's rights in each mode.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from charts import CHART, NAMESPACE, OLD, ROOT, VALUES, helm, render
from clusters import as_account, kubectl_of, raised
from control_plane import Operator

PREVIOUS = ROOT / "tests/chart/smartspec-0.1.0.tgz"
"""The chart as it was first committed, packaged then. It was never published: there is no older one."""
Kubectl = Callable[..., str]
Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A control plane on which nothing was installed: these tests remove the CRD, and nobody's may be lost."""
    if "KUBECONFIG" in os.environ:
        pytest.skip("KUBECONFIG is set: the CRD of somebody's cluster is not removed for a test")
    with raised(tmp_path_factory.mktemp("chart")) as path:
        yield path


@pytest.fixture(scope="module")
def kubectl(kubeconfig: Path) -> Kubectl:
    """kubectl as its administrator."""
    return kubectl_of(kubeconfig)


@pytest.fixture
def releases(kubeconfig: Path, kubectl: Kubectl) -> Iterator[Helm]:
    """helm against that control plane; every release and the CRD are gone after the test."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return helm(*arguments, "--namespace", NAMESPACE, check=check, KUBECONFIG=str(kubeconfig))

    yield run
    for release in json.loads(run("list", "--all", "--output", "json").stdout):
        run("uninstall", release["name"])
    kubectl("delete", "crd", "smartspecs.smartspec.io", "--ignore-not-found")


def install(releases: Helm, name: str = "smartspec", *flags: str, chart: Path = CHART) -> None:
    """`helm install`, without waiting for pods that nobody runs."""
    releases("install", name, str(chart), "--create-namespace", *flags)


def quickstart(kubectl: Kubectl) -> None:
    """A user's wish."""
    kubectl("wait", "--for=condition=Established", "crd/smartspecs.smartspec.io", "--timeout=20s")
    kubectl("apply", "-f", str(ROOT / "examples/quickstart.yaml"))


def names(kubectl: Kubectl, kind: str) -> set[str]:
    """The names of all objects of *kind*."""
    return set(kubectl("get", kind, "--all-namespaces", "--output=name").split())


def test_every_rendering_is_taken(kubectl: Kubectl, releases: Helm) -> None:
    """The API server accepts every object of every set of values, and kubectl knows every field of them."""
    for namespace in (NAMESPACE, "models", "more", "grafana"):
        kubectl("create", "namespace", namespace)
    account = ("serviceaccount", "smartspec-operator-try", "--namespace", NAMESPACE)
    kubectl("create", *account)  # or its pod is refused
    objects = {
        json.dumps(manifest, sort_keys=True)
        for values in VALUES.values()
        for manifest in render(values, kubernetes=OLD)
        if manifest["kind"] != "PodMonitor"  # its CRD belongs to others
    }
    everything = f'{{"apiVersion": "v1", "kind": "List", "items": [{", ".join(objects)}]}}'
    told = kubectl("apply", "--dry-run=server", "-f", "-", stdin=everything)
    kubectl("delete", *account)
    assert len(told.splitlines()) == len(objects) > 40


def test_an_uninstall_loses_no_wish(kubectl: Kubectl, releases: Helm) -> None:
    """CRD and SmartSpecs outlive the release, and another release takes the CRD over when told to."""
    install(releases)
    quickstart(kubectl)
    releases("uninstall", "smartspec")
    assert "smartspec.smartspec.io/quickstart" in names(kubectl, "smartspecs")
    assert not {
        name for kind in ("clusterrole", "clusterrolebinding") for name in names(kubectl, kind) if "smartspec" in name
    }
    refused = releases("install", "other", str(CHART), check=False)
    assert "ownership" in refused.stderr
    install(releases, "other", "--take-ownership")
    assert "smartspec.smartspec.io/quickstart" in names(kubectl, "smartspecs")
    owner = json.loads(kubectl("get", "crd", "smartspecs.smartspec.io", "--output=json"))["metadata"]
    assert owner["annotations"]["meta.helm.sh/release-name"] == "other"


@pytest.mark.parametrize("first", ["wishes", "release"])
def test_either_order_leaves_nothing_stuck(kubectl: Kubectl, releases: Helm, first: str) -> None:
    """Nothing waits for an operator that is not there any more."""
    install(releases)
    quickstart(kubectl)
    steps = [
        lambda: kubectl("delete", "smartspecs", "--all", "--all-namespaces", "--timeout=20s"),
        lambda: releases("uninstall", "smartspec").stdout,
    ]
    for step in steps if first == "wishes" else reversed(steps):
        step()
    kubectl("delete", "crd", "smartspecs.smartspec.io", "--timeout=20s")
    assert "smartspecs" not in kubectl("api-resources", "--api-group=smartspec.io")


def test_the_previous_chart_is_upgraded(kubectl: Kubectl, releases: Helm) -> None:
    """From the chart as first committed to this one, its values kept: rights, CRD and pods are this one's."""
    install(releases, "smartspec", "--set", "timing.tickSeconds=3", chart=PREVIOUS)
    quickstart(kubectl)
    releases("upgrade", "smartspec", str(CHART), "--reset-then-reuse-values", "--set", "replicas=2")
    found = kubectl("--namespace", NAMESPACE, "get", "deployment", "smartspec-operator", "--output=json")
    deployment = json.loads(found)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--tick-seconds=3" in container["args"]
    assert deployment["spec"]["replicas"] == 2
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    crd = json.loads(kubectl("get", "crd", "smartspecs.smartspec.io", "--output=json"))
    assert crd["metadata"]["labels"]["helm.sh/chart"] == f"smartspec-{version}"
    assert "smartspec.smartspec.io/quickstart" in names(kubectl, "smartspecs")


def test_an_upgrade_brings_the_new_crd(kubectl: Kubectl, releases: Helm, tmp_path: Path) -> None:
    """What helm never does for a chart's crds/ folder: a field that a later chart adds is there after the upgrade."""
    install(releases)
    later = tmp_path / "smartspec"
    shutil.copytree(CHART, later)
    source = later / "files/smartspec.io_smartspecs.yaml"
    crd = yaml.safe_load(source.read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["later"] = {"description": "A field of a later version.", "type": "string"}
    source.write_text(yaml.safe_dump(crd))
    releases("upgrade", "smartspec", str(later))
    live = json.loads(kubectl("get", "crd", "smartspecs.smartspec.io", "--output=json"))
    assert "later" in str(live["spec"])


MODES: dict[str, tuple[str, ...]] = {
    "cluster": (),
    "namespace": ("--set", "watchNamespace=default"),
    "namespace, keys by name": (
        "--set", "watchNamespace=default,rbac.adminKeys=named", "--set-json", 'rbac.adminKeyNames=["admin-key"]',
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_the_account_may_do_what_it_must_and_no_more(kubectl: Kubectl, releases: Helm, mode: str) -> None:
    """Asked of the API server itself, for what would hurt most and for what is needed."""
    install(releases, "smartspec", *MODES[mode])
    account = f"--as=system:serviceaccount:{NAMESPACE}:smartspec-operator"

    def may(verb: str, what: str, namespace: str = "default", part: str = "") -> bool:
        flags = ("--namespace", namespace, f"--subresource={part}")
        return "yes" in kubectl("auth", "can-i", verb, what, account, *flags, check=False)

    print(f"\n{mode}, in the namespace default:")
    print(kubectl("--namespace", "default", "auth", "can-i", "--list", account))
    assert may("patch", "smartspecs.smartspec.io", part="status")
    assert may("patch", "deployments.apps")
    assert may("update", "leases.coordination.k8s.io/smartspec-operator", NAMESPACE)
    for verb, what in [
        ("list", "secrets"), ("watch", "secrets"), ("delete", "secrets"), ("delete", "deployments.apps"),
        ("patch", "secrets"), ("update", "secrets"), ("get", "pods"),
        ("create", "pods"), ("update", "smartspecs.smartspec.io"), ("get", "nodes"),
        ("delete", "smartspecs.smartspec.io"), ("create", "rolebindings.rbac.authorization.k8s.io"),
        ("impersonate", "users"), ("update", "leases.coordination.k8s.io/other"),
    ]:  # fmt: skip
        assert not may(verb, what), f"{verb} {what}"
    assert not may("create", "pods", part="exec")
    assert may("get", "secrets/admin-key")
    assert may("get", "secrets/other") is ("keys" not in mode)
    assert may("create", "secrets") is ("keys" not in mode)
    assert may("list", "pods", "kube-system") is (mode == "cluster")
    assert may("list", "pods")


@pytest.mark.parametrize("mode", MODES)
def test_the_operator_serves_under_its_rights(
    kubeconfig: Path, kubectl: Kubectl, releases: Helm, tmp_path: Path, mode: str
) -> None:
    """Under its account, with its Deployment's flags, it makes all children where it may, and is forbidden nothing."""
    install(releases, "smartspec", *MODES[mode])
    kubectl("wait", "--for=condition=Established", "crd/smartspecs.smartspec.io", "--timeout=20s")
    deployment = json.loads(
        kubectl("--namespace", NAMESPACE, "get", "deployment", "smartspec-operator", "--output=json")
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    account = as_account(kubeconfig, NAMESPACE, "smartspec-operator", tmp_path)
    name = f"demo-{list(MODES).index(mode)}"  # the collector takes its time over another test's children
    running = Operator(account, tmp_path, arguments=container["args"][1:])
    kubectl("create", "secret", "generic", "admin-key", "--from-literal=key=secret")
    try:
        key = {"server": {"adminKeySecretRef": {"name": "admin-key", "key": "key"}}} if "keys" in mode else {}
        wish = {
            "apiVersion": "smartspec.io/v1alpha1",
            "kind": "SmartSpec",
            "metadata": {"name": name},
            "spec": {"model": {"source": "org/model"}, "storage": {"cache": {"size": "1Gi"}}, **key},
        }
        kubectl("apply", "-f", "-", stdin=json.dumps(wish))
        kubectl("wait", "--for=condition=Progressing", f"smartspec/{name}", "--timeout=30s")
        kinds = "deployment,service,configmap,persistentvolumeclaim,secret"
        made = set(kubectl("get", kinds, "-l", f"app.kubernetes.io/instance={name}", "--output=name").split())
        assert len(made) == (4 if key else 5), made
        events = kubectl("get", "events", "--field-selector", "involvedObject.kind=SmartSpec", "--output=name")
        assert events
        assert "orbidden" not in running.log.read_text()
    finally:
        assert running.stop() == 0
        kubectl("delete", "smartspecs", "--all", "--timeout=20s")
        kubectl("delete", "secret", "admin-key")


def test_users_of_a_namespace_get_their_rights(kubectl: Kubectl, releases: Helm) -> None:
    """Aggregation works: the cluster's own view and edit roles cover SmartSpecs."""
    install(releases)
    kubectl("create", "rolebinding", "viewer", "--clusterrole=view", "--user=vera")
    kubectl("create", "rolebinding", "editor", "--clusterrole=edit", "--user=ed")

    def may(user: str, verb: str, part: str = "") -> str:
        flags = (f"--as={user}", f"--subresource={part}")
        return kubectl("auth", "can-i", verb, "smartspecs.smartspec.io", *flags, check=False).strip()

    assert [may("vera", verb) for verb in ("list", "create")] == ["yes", "no"]
    assert [may("ed", verb) for verb in ("list", "create", "delete")] == ["yes"] * 3
    assert [may("ed", "update", part) for part in ("scale", "status")] == ["yes", "no"]
