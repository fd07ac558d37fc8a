"""A control plane for the session, the operator under its own service account, and a namespace for each test."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from charts import NAMESPACE, is_hook, render
from clusters import as_account, kubectl_of, raised
from control_plane import Kubelet, Operator, User
from smartspec_operator.kube import Api


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the control plane. What leaves hundreds of objects to be cleared away comes last."""
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker("cluster")
    items.sort(key=lambda item: Path(item.path).name == "test_scale.py")


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An administrator's kubeconfig: of `KUBECONFIG` where that is set, else of a control plane of our own.

    In somebody else's cluster nothing is touched but the CRD, the operator's role and namespaces made here.
    """
    if theirs := os.environ.get("KUBECONFIG"):
        yield Path(theirs)
        return
    with raised(tmp_path_factory.mktemp("cluster")) as path:
        yield path


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Callable[..., str]:
    """kubectl as an administrator: arguments and standard input in, standard output back."""
    return kubectl_of(kubeconfig)


@pytest.fixture(scope="session")
def operator(
    kubeconfig: Path, kubectl: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """A running operator that may do no more than the chart's role allows."""
    folder = tmp_path_factory.mktemp("operator")
    server = json.loads(kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
    wanted = {"CustomResourceDefinition", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    made = [m for m in render(kubernetes=server.removeprefix("v")) if m["kind"] in wanted and not is_hook(m)]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([namespace, *made]))
    kubectl("wait", "--for=condition=Established", "crd/smartspecs.smartspec.io", "--timeout=20s")
    running = Operator(as_account(kubeconfig, NAMESPACE, "smartspec-operator", folder), folder)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture
async def api(kubeconfig: Path) -> AsyncIterator[Api]:
    """The API as an administrator."""
    found = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=found)
    async with ApiClient(found) as client:
        yield Api(client)


@pytest.fixture
def namespace(kubectl: Callable[..., str], request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"t-{abs(hash(request.node.name)) % 10**8}-{os.getpid()}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubelet(api: Api, namespace: str) -> Kubelet:
    """The kubelet of the test's namespace."""
    return Kubelet(api, namespace)


@pytest.fixture
def user(api: Api, kubectl: Callable[..., str], namespace: str, operator: Operator) -> User:
    """A user of the test's namespace, served by the operator."""
    return User(api, kubectl, namespace)
