"""kopf wiring only: an edit reconciles at once, a periodic task of the operator does the rest.

A timer or daemon for each object would add a finalizer, and an uninstall in the wrong order would strand resources. A
plain event handler adds nothing to the object, no finalizer and no annotation: the next tick is its retry.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import kopf
from aiohttp import ClientSession, DummyCookieJar, web

from smartspec_operator.connection import connect
from smartspec_operator.controller import Controller
from smartspec_operator.kube import Api, KubernetesCluster
from smartspec_operator.resource import FIELD_MANAGER, GROUP, PLURAL, VERSION
from smartspec_operator.world import Timing


async def run(*, namespace: str | None, image: str, probe_port: int | None, timing: Timing) -> None:
    """Serve every SmartSpec of *namespace*, or of all, until told to stop; raises `NoClusterError` before it begins.

    One operator at a time: it is deployed as a single replica with the strategy `Recreate`, so no lease is held.
    """
    async with _controller(namespace, image, timing) as controller, _probe(controller, probe_port):
        ticks = asyncio.create_task(controller.run(), name="ticks")
        try:
            await kopf.operator(
                registry=registry(controller),
                settings=settings(),
                standalone=True,
                clusterwide=namespace is None,
                namespaces=[namespace] if namespace else [],
            )
        finally:
            ticks.cancel()
            await asyncio.gather(ticks, return_exceptions=True)


def registry(controller: Controller) -> kopf.OperatorRegistry:
    """The one handler, and kopf's own way to log in."""
    found = kopf.OperatorRegistry()
    kopf.on.login(registry=found)(kopf.login_via_client)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=found)
    async def changed(event: kopf.RawEvent, body: kopf.Body, **_: Any) -> None:
        if event["type"] != "DELETED":
            await controller.edited(dict(body))

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
async def _controller(namespace: str | None, image: str, timing: Timing) -> AsyncIterator[Controller]:
    async with await connect() as client, ClientSession(cookie_jar=DummyCookieJar()) as session:
        cluster = KubernetesCluster(Api(client), namespace)
        yield Controller(cluster, session, image=image, timing=timing)


@contextlib.asynccontextmanager
async def _probe(controller: Controller, port: int | None) -> AsyncIterator[None]:
    """`/healthz` by the age of the last tick: the process is alive only while it does its work."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(status=200 if controller.is_alive else 503, text="ok" if controller.is_alive else "stuck")

    if port is None:
        yield
        return
    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
