"""The operator against a control plane: its process, a user with kubectl, and what stands in for kubelet and replicas.

There is no kubelet: `Kubelet` writes what one would write of pods. Replicas answer on loopback addresses of their own,
all on the admin port that the Deployment declares.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import ClientSession, web
from prometheus_client.parser import text_string_to_metric_families

from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings, decode_settings
from smartspec_operator.kube import Api
from smartspec_operator.replica_pod import ADMIN_PORT
from smartspec_operator.resource import Manifest

ROOT = Path(__file__).parents[1]
PERIODS = ["--tick-seconds", "0.3", "--tuning-seconds", "0.5", "--scaling-seconds", "1"]
LEASE = ["--lease-namespace", "smartspec-system", "--lease-seconds", "2"]
SECONDS = 20.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def loopback(number: int) -> str:
    """An address of this machine for a replica; those of tests beside this one, in other workers, have others."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return f"127.0.{worker}.{number}"


class Operator:
    """The operator as a process, with its log."""

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        name: str = "operator",
        arguments: Sequence[str] = ("--all-namespaces", *PERIODS),
    ) -> None:
        self._arguments = [*LEASE, *arguments]
        self.kubeconfig = kubeconfig
        self.log = folder / f"{name}.log"
        self.probe_port = free_port()
        self._environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "error", "-m", "smartspec_operator", "run", *self._arguments]
        command += ["--probe-port", str(self.probe_port)]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment, cwd=ROOT)

    def kill(self) -> None:
        """End it without a warning."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it again."""
        self.process = self._start()

    async def metrics(self) -> dict[str, float]:
        """What it says of itself, by name and labels as they stand in the exposition."""
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{self.probe_port}/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
        return {
            "".join([sample.name, *(f",{key}={value}" for key, value in sorted(sample.labels.items()))]): sample.value
            for family in families
            for sample in family.samples
        }

    def stop(self) -> int:
        """Ask it to end; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


class Kubelet:
    """Writes what a kubelet would write of the pods of one namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    async def pods(self) -> list[Manifest]:
        """The pods that are not on their way out."""
        found = await self.api.list("Pod", self.namespace)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def run(self, pod: Manifest, address: str, *, ready: bool = True) -> None:
        """The pod has an address, and is ready or not."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        text = "True" if ready else "False"
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [
                {"type": kind, "status": text, "lastTransitionTime": now} for kind in ("Ready", "ContainersReady")
            ],
        }
        name = pod["metadata"]["name"]
        await self.api.patch("Pod", self.namespace, name, {"status": status}, "status")

    async def fail(self, pod: Manifest, reason: str, last_words: str) -> None:
        """The pod's container dies again and again."""
        container = {
            "name": "smartspec", "image": "x", "imageID": "x", "ready": False, "restartCount": 3,
            "state": {"waiting": {"reason": reason, "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 1, "message": last_words}},
        }  # fmt: skip
        status = {"phase": "Running", "containerStatuses": [container]}
        await self.api.patch("Pod", self.namespace, pod["metadata"]["name"], {"status": status}, "status")


class User:
    """Somebody with kubectl who has one SmartSpec named demo."""

    def __init__(self, api: Api, kubectl: Callable[..., str], namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self._kubectl = kubectl

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return await asyncio.to_thread(self._kubectl, "-n", self.namespace, *arguments, stdin=stdin)

    async def apply(self, **spec: Any) -> None:
        """Apply the resource with *spec* over the least one."""
        body = {
            "apiVersion": "smartspec.io/v1alpha1",
            "kind": "SmartSpec",
            "metadata": {"name": "demo"},
            "spec": {"model": {"source": "org/model"}, **spec},
        }
        await self.kubectl("apply", "-f", "-", stdin=json.dumps(body))

    async def resource(self) -> Manifest:
        """The resource as it is."""
        found = await self.api.get("SmartSpec", self.namespace, "demo")
        assert found is not None
        return found

    async def condition(self, kind: str) -> Manifest:
        """One of its conditions; empty while it is not set."""
        conditions = (await self.resource()).get("status", {}).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == kind), {})

    async def get(self, kind: str, name: str = "demo") -> Manifest:
        """A child."""
        found = await self.api.get(kind, self.namespace, name)
        assert found is not None
        return found

    async def admin_key(self) -> str:
        """The generated admin key."""
        return base64.b64decode((await self.get("Secret", "demo-admin-key"))["data"]["key"]).decode()


class AdminPort:
    """A replica's admin port without a replica: says `report`, takes policies and drains."""

    def __init__(self, report: LoadReport, key: str) -> None:
        self.report = report
        self.key = key
        self.settings = PolicySettings()
        self.policies: list[PolicySettings] = []
        self.requests = 0

    @property
    def is_draining(self) -> bool:
        """Whether it was asked to drain."""
        return self.report.state == "draining"

    def _authorize(self, request: web.Request) -> None:
        self.requests += 1
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            raise web.HTTPUnauthorized

    async def load(self, request: web.Request) -> web.Response:
        """GET /load."""
        self._authorize(request)
        report = msgspec.structs.replace(self.report, generation=self.settings.generation)
        return web.Response(body=msgspec.json.encode(report))

    async def put_policy(self, request: web.Request) -> web.Response:
        """PUT /policy."""
        self._authorize(request)
        self.settings = decode_settings(await request.read())
        self.policies.append(self.settings)
        return web.Response()

    async def drain(self, request: web.Request) -> web.Response:
        """POST /drain."""
        self._authorize(request)
        self.report = msgspec.structs.replace(self.report, state="draining")
        return web.Response(status=202)


@contextlib.asynccontextmanager
async def admin_port(address: str, report: LoadReport, key: str) -> AsyncIterator[AdminPort]:
    """An admin port at *address* while the context lasts."""
    port = AdminPort(report, key)
    app = web.Application()
    app.router.add_get("/load", port.load)
    app.router.add_put("/policy", port.put_policy)
    app.router.add_post("/drain", port.drain)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, ADMIN_PORT).start()
        yield port
    finally:
        await runner.cleanup()


async def eventually(holds: Callable[[], Any], *, seconds: float = SECONDS) -> Any:
    """What *holds* returns as soon as it is true; its last answer, or assertion, is told when it never is."""
    deadline, answer = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if answer := await holds():
                return answer
        except (AssertionError, KeyError) as error:  # a field that is not there yet is no failure either
            answer = error
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s, at last: {answer!r}")
