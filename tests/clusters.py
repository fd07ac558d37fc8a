"""Control planes of our own, raised by `tests/cluster/cluster`, and kubectl against them."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).parent / "cluster/cluster"
NOT_HERE = 77
"""The script's status where this machine cannot: its last line says why."""


@contextlib.contextmanager
def raised(folder: Path) -> Iterator[Path]:
    """A control plane without a node while the context lasts; its administrator's kubeconfig. Skips where it cannot."""
    environment = os.environ | {"CLUSTER_DIR": str(folder / "state"), "CLUSTER_PORT": str(_free_port())}
    try:
        done = subprocess.run([SCRIPT, "up"], env=environment, check=False, capture_output=True, text=True)
        if done.returncode == NOT_HERE:
            pytest.skip(done.stderr.strip().splitlines()[-1])
        assert done.returncode == 0, f"the control plane did not start:\n{done.stderr}"
        yield folder / "state" / "admin.conf"
    finally:
        subprocess.run([SCRIPT, "down"], env=environment, check=False, capture_output=True)


def _free_port() -> int:
    """A port with two free ones above it, below the range from which clients' ports are taken."""
    for port in range(20000 + os.getpid() % 3000 * 3, 32000, 3):
        try:
            for offset in range(3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise AssertionError("no free ports")


def kubectl_of(kubeconfig: Path) -> Callable[..., str]:
    """kubectl as the user of *kubeconfig*: arguments and standard input in, standard output back."""
    path = kubeconfig.with_name("kubectl.path")
    program = path.read_text().strip() if path.exists() else "kubectl"

    def run(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
        command = [program, f"--kubeconfig={kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, check=False, capture_output=True, text=True)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    return run


def as_account(kubeconfig: Path, namespace: str, name: str, folder: Path) -> Path:
    """A kubeconfig for the same cluster whose user is a service account."""
    # What `kubectl create token` asks for, which kubectl does not know before 1.24.
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = kubectl_of(kubeconfig)("create", "--raw", account, "-f", "-", stdin=json.dumps(request))
    limited = yaml.safe_load(kubeconfig.read_text())
    user = {"token": json.loads(answer)["status"]["token"]}
    limited["users"] = [{"name": limited["contexts"][0]["context"]["user"], "user": user}]
    found = folder / f"{name}.conf"
    found.write_text(yaml.safe_dump(limited))
    return found
