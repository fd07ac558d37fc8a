"""kopf wiring only: an edit reconciles at once, a periodic task of the operator does the rest.

A timer or daemon for each object would add a finalizer, and an uninstall in the wrong order would strand resources. A
plain event handler adds nothing to the object, no finalizer and no annotation: the next tick is its retry.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kopf
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from prometheus_client import CONTENT_TYPE_LATEST

from smartspec_operator.connection import connect
from smartspec_operator.controller import Controller
from smartspec_operator.kube import Api
from smartspec_operator.lease import Lease
from smartspec_operator.metrics import Metrics
from smartspec_operator.resource import FIELD_MANAGER, GROUP, PLURAL, VERSION
from smartspec_operator.snapshot import KubernetesCluster
from smartspec_operator.world import Timing

log = logging.getLogger(__name__)

IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class LeaseName:
    """Which lease makes this process the one that acts."""

    namespace: str
    name: str
    duration_seconds: float


async def run(
    *, namespace: str | None, image: str, probe_port: int | None, timing: Timing, lease_name: LeaseName
) -> None:
    """Serve every SmartSpec of *namespace*, or of all, until told to stop, while the lease is ours.

    Raises `NoClusterError` before it begins, and `LeaseLostError` when another may act now. Who stands by runs nothing
    but the probe: two copies of kopf would both handle every event.
    """
    metrics = Metrics()
    # The lease has connections of its own: its renewal must not queue behind hundreds of reconciles.
    async with await connect() as client, await connect() as own, _session() as session:
        api = Api(client, metrics)
        lease = Lease(
            Api(own, metrics),
            lease_name.namespace,
            lease_name.name,
            identity(),
            duration_seconds=lease_name.duration_seconds,
        )
        controller = Controller(KubernetesCluster(api, namespace), session, metrics, image=image, timing=timing)
        async with _probe(lambda: controller.is_alive and lease.is_alive, metrics, probe_port):
            if await _unless_told_to_stop(lease.acquire()):
                log.info("leading as %s", lease.identity)
                metrics.leader.set(1)
                try:
                    await _lead(controller, lease, namespace)
                finally:
                    await lease.release()


def _session() -> ClientSession:
    """For the replicas: no cookies, and no limit but that on requests at once."""
    return ClientSession(cookie_jar=DummyCookieJar(), connector=TCPConnector(limit=0))


def identity() -> str:
    """Who this is among those that want the lease.

    A pod's name is enough, and better: a container that starts again in its pod knows that the one before is dead.
    """
    host = socket.gethostname()
    return host if IN_POD.exists() else f"{host}-{uuid.uuid4().hex[:8]}"


def own_namespace() -> str:
    """Where this process runs, as far as it knows."""
    return IN_POD.read_text().strip() if IN_POD.exists() else "default"


async def _unless_told_to_stop(waiting: Coroutine[Any, Any, None]) -> bool:
    """Whether *waiting* has come to its end before SIGTERM or SIGINT did."""
    loop, task = asyncio.get_running_loop(), asyncio.create_task(waiting)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await asyncio.wait({task})
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if task.cancelled():
        return False
    task.result()
    return True


async def _lead(controller: Controller, lease: Lease, namespace: str | None) -> None:
    """Tick, handle edits and renew the lease, until one of them ends: all end together."""
    ticks = asyncio.create_task(controller.run(), name="ticks")
    holding = asyncio.create_task(lease.hold(), name="lease")
    handling = asyncio.create_task(
        kopf.operator(
            registry=registry(controller),
            settings=settings(),
            standalone=True,
            clusterwide=namespace is None,
            namespaces=[namespace] if namespace else [],
        ),
        name="kopf",
    )
    tasks = (ticks, handling, holding)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


def registry(controller: Controller) -> kopf.OperatorRegistry:
    """The one handler, and kopf's own way to log in."""
    found = kopf.OperatorRegistry()
    kopf.on.login(registry=found)(kopf.login_via_client)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=found)
    async def changed(event: kopf.RawEvent, body: kopf.Body, **_: Any) -> None:
        if event["type"] != "DELETED":
            controller.edited(dict(body))

    return found


def settings() -> kopf.OperatorSettings:
    """Timeouts against dead connections; names of our own; log messages are not Events."""
    found = kopf.OperatorSettings()
    found.watching.server_timeout = 300
    found.watching.client_timeout = 330
    found.networking.request_timeout = 30
    found.networking.connect_timeout = 10
    found.persistence.finalizer = f"{GROUP}/{FIELD_MANAGER}"
    found.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    found.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    found.posting.enabled = False
    # Ours is one known resource: nothing else need be listed, and no rights for it be given.
    found.scanning.disabled = True
    return found


@contextlib.asynccontextmanager
async def _probe(is_alive: Callable[[], bool], metrics: Metrics, port: int | None) -> AsyncIterator[None]:
    """`/healthz` by the age of the last tick, or of the last look at the lease: alive only while it does its work.

    `/readyz` is 200 from the beginning: readiness is not leadership, and a standby must not hold up a rollout.
    """

    async def healthz(_: web.Request) -> web.Response:
        alive = is_alive()
        return web.Response(status=200 if alive else 503, text="ok" if alive else "stuck")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    if port is None:
        yield
        return
    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
