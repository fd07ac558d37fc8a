"""A cluster whose pods really run, raised by `tests/cluster/cluster up --node`, with this repository's images on it."""

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import NOT_HERE, SCRIPT

ROOT = Path(__file__).parents[1]
IMAGES = {"operator": "smartspec/operator:test", "runtime": "smartspec/runtime:test"}
"""What the targets of the Dockerfile are called on the node."""
OPERATOR_IMAGE, RUNTIME_IMAGE = IMAGES.values()
TARGET, DRAFT = "/models/stdlib-target", "/models/stdlib-draft"
"""The bundled pair inside the runtime image."""


def run(*command: str | Path, folder: Path | None = None, show: bool = True) -> None:
    """Run the cluster script, or another builder of images, and print its words; skip where it cannot."""
    environment = os.environ | ({"CLUSTER_DIR": str(folder)} if folder else {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False, text=True, **pipes)
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode == NOT_HERE:
        pytest.skip(lines[-1])
    assert done.returncode == 0, f"{shlex.join(map(str, command))}:\n{done.stdout}"
    if show:
        print("\n".join(lines))


@contextlib.contextmanager
def raised_node(folder: Path) -> Iterator[Path]:
    """A cluster of our own with a node, DNS and the images, while the context lasts; its administrator's kubeconfig."""
    run(SCRIPT, "check", "--node")
    state = folder / "state"
    before = traces(state)
    try:
        run(SCRIPT, "up", "--node", folder=state)
        for target, image in IMAGES.items():
            run(SCRIPT, "image", target, image, folder=state)
            run(SCRIPT, "load", image, folder=state)
        yield state / "admin.conf"
    finally:
        run(SCRIPT, "down", folder=state)
        assert not (left := traces(state) - before), f"`cluster down` left behind: {left}"


def traces(state: Path) -> set[str]:
    """What a node in *state* leaves on a machine that was not cleared."""

    def lines(*command: str) -> list[str]:
        program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
        return subprocess.check_output([program, *command[1:]], text=True).splitlines() if program else []

    def works_there(process: Path) -> bool:
        try:
            return str(state) in f"{(process / 'cwd').readlink()} {(process / 'cmdline').read_text()}"
        except OSError:  # it has ended meanwhile
            return False

    return {
        *(f"interface {path.name}" for path in Path("/sys/class/net").iterdir()),
        *(f"address {line}" for line in lines("ip", "-o", "address", "show", "dev", "lo")),
        *(f"route {line}" for line in lines("ip", "route")),
        *(f"namespace {line}" for line in lines("ip", "netns")),
        *(f"rule {line}" for line in lines("iptables-save") if line.startswith("-A")),
        *(f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if f"{state}/" in line),
        *(f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob("**/kubepods*")),
        *(f"program {folder}" for folder in Path("/proc").glob("[0-9]*") if works_there(folder)),
    }


def load_images(command: str) -> None:
    """Build the images with docker or podman and hand each to *command* (`kind load docker-image`); `true`: they are
    there."""
    if command == "true":
        return
    builder = shutil.which("docker") or shutil.which("podman")
    if builder is None:
        pytest.skip("SMARTSPEC_LOAD_IMAGE is set, but there is neither docker nor podman to build the images with")
    index = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
    for target, image in IMAGES.items():
        run(builder, "build", "--target", target, "--build-arg", f"TORCH_INDEX={index}", "-t", image, ".", show=False)
        run(*shlex.split(command), image, show=False)


class ApiServer:
    """The API server of a cluster of our own."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def stop(self) -> None:
        """Kill it; etcd, the controllers, the kubelet and all pods stay."""
        run(SCRIPT, "stop-apiserver", folder=self._state)

    def start(self) -> float:
        """Bring it back with all it knew; the seconds until it answers."""
        began = time.monotonic()
        run(SCRIPT, "start-apiserver", folder=self._state)
        return time.monotonic() - began
