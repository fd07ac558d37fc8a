"""A cluster with a node for the session: pods of this repository's images run, resolve names and serve."""

import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from clusters import kubectl_of
from nodes import ApiServer, load_images, raised_node
from release import Release, installed
from smartspec_operator.kube import Api


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the node."""
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An administrator's kubeconfig of a cluster with a node that has the images.

    That is `KUBECONFIG` where it is set, the images brought there by `SMARTSPEC_LOAD_IMAGE`; else a cluster of our own.
    """
    if theirs := os.environ.get("KUBECONFIG"):
        if not (command := os.environ.get("SMARTSPEC_LOAD_IMAGE")):
            pytest.skip(
                "KUBECONFIG is set, but not SMARTSPEC_LOAD_IMAGE: the command that brings an image onto its nodes, "
                "such as 'kind load docker-image' ('true' where they have smartspec/operator:test and runtime:test)"
            )
        load_images(command)
        yield Path(theirs)
        return
    with raised_node(tmp_path_factory.mktemp("node")) as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="session")
def kubectl(node: Path) -> Callable[..., str]:
    """kubectl as an administrator: arguments and standard input in, standard output back."""
    return kubectl_of(node)


@pytest.fixture(scope="session")
def release(node: Path, kubectl: Callable[..., str]) -> Iterator[Release]:
    """The chart, installed by helm with the node's images."""
    with installed(node, kubectl) as found:
        yield found


@pytest.fixture
async def api(node: Path) -> AsyncIterator[Api]:
    """The API as an administrator."""
    found = Configuration()
    await config.load_kube_config(config_file=str(node), client_configuration=found)
    async with ApiClient(found) as client:
        yield Api(client)


@pytest.fixture
def namespace(kubectl: Callable[..., str], request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own; its pods are gone when the next test begins, the rest soon after."""
    name = f"n-{abs(hash(request.node.name)) % 10**8}-{os.getpid()}"
    kubectl("create", "namespace", name)
    yield name
    # First what makes pods, then the pods: with pods in it, a namespace is looked at again only after half of their
    # grace, which for replicas is minutes. By force, for this kubelet looks for the containers of a pod that has ended
    # only when it looks at the pod anyway.
    for kind in ("smartspecs", "deployments"):
        kubectl("--namespace", name, "delete", kind, "--all", "--timeout=120s", check=False)
    kubectl("--namespace", name, "delete", "pods", "--all", "--grace-period=0", "--force", check=False)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def service_url(kubectl: Callable[..., str]) -> Callable[[str, str], str]:
    """The address of a Service by its namespace and name, for clients outside: kube-proxy serves this machine too."""

    def url(namespace: str, name: str) -> str:
        spec = json.loads(kubectl("-n", namespace, "get", "service", name, "-o", "json"))["spec"]
        address, port = spec["clusterIP"], spec["ports"][0]["port"]
        try:
            # A Service without ready pods refuses; a cluster that is not this machine does not answer at all.
            socket.create_connection((address, port), timeout=3).close()
        except ConnectionRefusedError:
            pass
        except OSError as error:
            pytest.skip(f"the cluster's addresses are not reachable from here: {address}: {error}")
        return f"http://{address}:{port}"

    return url


@pytest.fixture(scope="session")
def api_server(node: Path) -> ApiServer:
    """The API server, to be stopped and started."""
    if not node.with_name("apiserver.pid").exists():
        pytest.skip("the API server is not ours to stop")
    return ApiServer(node.parent)
