"""The admin ports over HTTP: a key that cannot be sent, or an answer too long, is a failure of that replica alone."""

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import ClientSession, ClientTimeout, web
from aiohttp.typedefs import Handler

from fleets import NOW, load
from smartspec_operator import replicas as replicas_module
from smartspec_operator.metrics import Metrics
from smartspec_operator.replicas import MAX_ANSWER_BYTES, HttpReplicas
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

    async with serving("POST", "/drain", drain) as found:
        yield found


@asynccontextmanager
async def serving(method: str, path: str, handler: Handler) -> AsyncIterator[Pod]:
    """A pod whose admin port answers so."""
    app = web.Application()
    app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
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


SENT: list[int] = []
"""How much of an endless answer was taken."""


async def endless(request: web.Request) -> web.StreamResponse:
    """White space for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)
        SENT.append(65_536)


async def bomb(request: web.Request) -> web.Response:
    """A few bytes that would be sixty-four MiB."""
    return web.Response(body=gzip.compress(b" " * (64 << 20), 9), headers={"Content-Encoding": "gzip"})


async def elsewhere(request: web.Request) -> web.Response:
    """A way to what only the operator can reach."""
    raise web.HTTPFound("/secret")


async def roomy(request: web.Request) -> web.Response:
    """A report as long as one may be."""
    report = msgspec.json.encode(load())
    return web.Response(body=report + b" " * (MAX_ANSWER_BYTES - len(report)))


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (endless, f"/load: the answer is longer than {MAX_ANSWER_BYTES} bytes"),
        (bomb, "/load: the answer is compressed (gzip), and nobody asked for that"),
        (elsewhere, "/load: HTTP 302, and redirects are not followed"),
        (roomy, None),
    ],
)
async def test_an_image_cannot_harm_who_asks_it(handler: Handler, told: str | None) -> None:
    """An answer without end, one that unfolds and one that leads elsewhere are failures that say so."""
    SENT.clear()
    async with serving("GET", "/load", handler) as pod, ClientSession() as session:
        replicas = HttpReplicas(session, Secrets(b"key"), Metrics(), asyncio.Semaphore(1))  # type: ignore[arg-type]
        assert await replicas.load(OWNER, pod) == (load() if told is None else Failure(told))
    assert sum(SENT) < 16 << 20  # what the sockets hold may be more than what was read


@pytest.mark.parametrize(("delays", "is_known"), [((0.3,), True), ((2.0, 0.0), True), ((2.0, 2.0), False)])
async def test_a_replica_that_is_late_once_is_asked_again(
    delays: tuple[float, ...], is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment of work is no silence: it would turn conditions back and forth. And nobody is asked a third time."""
    monkeypatch.setattr(replicas_module, "AGAIN_TIMEOUT", ClientTimeout(total=0.3))
    left = iter(delays)

    async def report(_: web.Request) -> web.Response:
        await asyncio.sleep(next(left))
        return web.Response(body=msgspec.json.encode(load(num_requests_running=3)))

    async with serving("GET", "/load", report) as pod, ClientSession() as session:
        replicas = HttpReplicas(session, Secrets(b"secret"), Metrics(), asyncio.Semaphore(1))  # type: ignore[arg-type]
        answer = await replicas.load(OWNER, pod)
    assert isinstance(answer, Failure) is not is_known
    assert next(left, None) is None
