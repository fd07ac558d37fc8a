"""The admin ports over HTTP: a key that cannot be sent is a failure of that replica, and of nothing else."""

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, web

from fleets import NOW
from smartspec_operator.metrics import Metrics
from smartspec_operator.replicas import HttpReplicas
from smartspec_operator.resource import Manifest, parse
from smartspec_operator.world import Failure, Pod

OWNER = parse({"metadata": {"name": "demo", "namespace": "ns"}, "spec": {"model": {"source": "org/m"}}})


class Secrets:
    """A cluster that holds one key."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """The Secret."""
        return {"kind": kind, "data": {"key": base64.b64encode(self.key).decode()}}


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    """A replica that drains for whoever sends `Bearer secret`."""

    async def drain(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.headers.get("Authorization") == "Bearer secret" else 401)

    app = web.Application()
    app.router.add_post("/drain", drain)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Pod("demo-1", NOW, admin_url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        (b"secret\n", None),
        (b"other", Failure("/drain: HTTP 401", is_key_refused=True)),
        (b"\xffsecret", Failure("/drain: the admin key in Secret demo-admin-key is no line of text")),
        (b"two\r\nlines", Failure("/drain: the admin key in Secret demo-admin-key is no line of text")),
    ],
)
async def test_a_failure_is_a_value(pod: Pod, key: bytes, answer: Failure | None) -> None:
    """Also where the key is no text, or several lines of it; what is told has nothing of the key."""
    async with ClientSession() as session:
        replicas = HttpReplicas(session, Secrets(key), Metrics(), asyncio.Semaphore(1))  # type: ignore[arg-type]
        assert await replicas.drain(OWNER, pod) == answer
