"""A control plane for the session, the operator under its own service account, and a namespace for each test."""

import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from control_plane import ROOT, Kubelet, Operator, User
from smartspec_operator.kube import Api

SCRIPT = Path(__file__).with_name("cluster")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the control plane."""
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An administrator's kubeconfig: of `KUBECONFIG` where that is set, else of a control plane of our own.

    In somebody else's cluster nothing is touched but the CRD, the operator's role and namespaces made here.
    """
    if theirs := os.environ.get("KUBECONFIG"):
        yield Path(theirs)
        return
    folder = tmp_path_factory.mktemp("cluster")
    environment = os.environ | {"CLUSTER_DIR": str(folder / "state"), "CLUSTER_PORT": str(_free_port())}
    try:
        subprocess.run([SCRIPT, "up"], env=environment, check=True, capture_output=True, text=True)
        yield folder / "state" / "admin.conf"
    except subprocess.CalledProcessError as error:
        pytest.fail(f"the control plane did not start:\n{error.stderr}")
    finally:
        subprocess.run([SCRIPT, "down"], env=environment, check=False, capture_output=True)


def _free_port() -> int:
    """A port with two free ones above it, below the range from which clients' ports are taken."""
    for port in range(20000 + os.getpid() % 5000, 32000, 3):
        try:
            for offset in range(3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Callable[..., str]:
    """kubectl as an administrator: arguments and standard input in, standard output back."""

    path = kubeconfig.with_name("kubectl.path")
    program = path.read_text().strip() if path.exists() else "kubectl"

    def run(*arguments: str, stdin: str | None = None) -> str:
        command = [program, f"--kubeconfig={kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def operator(
    kubeconfig: Path, kubectl: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """A running operator that may do no more than its role in examples/operator allows."""
    folder = tmp_path_factory.mktemp("operator")
    kubectl("apply", "--validate=false", "-f", str(ROOT / "crds"))
    kubectl("apply", "-f", str(ROOT / "examples/operator/rbac.yaml"))
    kubectl("wait", "--for=condition=Established", "crd/smartspecs.smartspec.io", "--timeout=20s")
    # What `kubectl create token` asks for, which kubectl does not know before 1.24.
    account = "/api/v1/namespaces/smartspec-system/serviceaccounts/smartspec-operator/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = kubectl("create", "--raw", account, "-f", "-", stdin=json.dumps(request))
    token = json.loads(answer)["status"]["token"]
    limited = yaml.safe_load(kubeconfig.read_text())
    limited["users"] = [{"name": limited["contexts"][0]["context"]["user"], "user": {"token": token}}]
    (folder / "operator.conf").write_text(yaml.safe_dump(limited))
    running = Operator(folder / "operator.conf", folder)
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
