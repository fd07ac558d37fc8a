"""The front before local replicas: real sockets on both sides, because fakes do not break off."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientError, ClientSession, web
from yarl import URL

from smartspec_operator import front as front_module
from smartspec_operator.front import REPLICA_HEADER, Front, is_ready
from waiting import until

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Upstream:
    """A replica whose every answer is *handler*'s; it counts requests and notes which handlers were cancelled."""

    name: str
    handler: Handler
    url: URL = field(default_factory=URL)
    served: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Count, answer, note a cancellation."""
        self.served += 1
        try:
            return await self.handler(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def say_ok(request: web.Request) -> web.StreamResponse:
    """Answer 200 with nothing in it."""
    return web.Response()


@asynccontextmanager
async def listening(name: str, handler: Handler = say_ok) -> AsyncIterator[Upstream]:
    """A replica on a free port."""
    upstream = Upstream(name, handler)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream.url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        yield upstream
    finally:
        await runner.cleanup()


@dataclass
class Client:
    """A front with a session that talks to it."""

    front: Front
    session: ClientSession
    url: URL

    def route(self, *upstreams: Upstream) -> None:
        """Make these, and no others, the ready replicas."""
        self.front.route({upstream.name: upstream.url for upstream in upstreams})

    async def post(self, body: str = "{}") -> tuple[int, str | None]:
        """Status, and the name of the replica that answered."""
        async with self.session.post(self.url / "v1/completions", data=body) as answer:
            await answer.read()
            return answer.status, answer.headers.get(REPLICA_HEADER)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A listening front without replicas."""
    async with Front() as front, ClientSession() as session:
        runner = await front_module.serve(front, "127.0.0.1", 0)
        try:
            yield Client(front, session, URL(f"http://127.0.0.1:{runner.addresses[0][1]}"))
        finally:
            await runner.cleanup()


def closed_port() -> URL:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return URL(f"http://127.0.0.1:{probe.getsockname()[1]}")


async def test_passes_method_path_query_body_and_headers_through(client: Client) -> None:
    """What a client says reaches the replica as it was said, but for what describes its connection."""
    seen: dict[str, str] = {}

    async def remember(request: web.Request) -> web.StreamResponse:
        seen.update(request.headers)
        return web.json_response(
            {"path": request.raw_path, "body": (await request.read()).decode()}, status=201, headers={"X-Theirs": "1"}
        )

    async with listening("a", remember) as replica:
        client.route(replica)
        headers = {"Authorization": "Bearer k", "Keep-Alive": "timeout=5", "X-Hop": "1", "Connection": "x-hop"}
        url = URL(f"{client.url}/v1/a%2Fb?x=1%202&y", encoded=True)
        async with client.session.put(url, data="hällo", headers=headers) as answer:
            told = json.loads(await answer.read())
    assert (answer.status, answer.headers["X-Theirs"]) == (201, "1")
    assert told == {"path": "/v1/a%2Fb?x=1%202&y", "body": "hällo"}
    assert seen["Authorization"] == "Bearer k"
    assert not {"Keep-Alive", "X-Hop"} & seen.keys()


async def test_streams_each_chunk_as_it_comes(client: Client) -> None:
    """The first event reaches the client while the replica is still holding back the second."""
    more = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await more.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    async with listening("a", stream) as replica:
        client.route(replica)
        async with client.session.post(client.url / "v1/completions") as answer, asyncio.timeout(5):
            assert answer.content_type == "text/event-stream"
            assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
            more.set()
            assert await answer.content.read() == b"data: [DONE]\n\n"
    assert client.front.outstanding == {"a": 0}


async def test_a_request_goes_to_the_replica_with_fewest_outstanding(client: Client) -> None:
    """While one replica is stuck with requests, all new ones go to the other, on the same client connection."""
    release = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    async with listening("slow", hold) as slow, listening("quick") as quick:
        client.route(slow)
        stuck = [asyncio.create_task(client.post()) for _ in range(2)]
        await until(lambda: client.front.outstanding["slow"] == 2)
        client.route(slow, quick)
        assert client.front.outstanding == {"slow": 2, "quick": 0}
        assert [await client.post() for _ in range(5)] == [(200, "quick")] * 5
        release.set()
        assert await asyncio.gather(*stuck) == [(200, "slow")] * 2


async def test_equally_idle_replicas_take_turns(client: Client) -> None:
    """Without outstanding requests no replica is favoured, so that each keeps learning."""
    async with listening("a") as a, listening("b") as b, listening("c") as c:
        client.route(a, b, c)
        for _ in range(9):
            await client.post()
        assert (a.served, b.served, c.served) == (3, 3, 3)


async def test_a_refused_connection_is_tried_on_another_replica(client: Client) -> None:
    """A replica that died a moment ago costs its clients nothing."""
    async with listening("alive") as alive:
        client.front.route({"dead": closed_port(), "alive": alive.url})
        assert [await client.post() for _ in range(3)] == [(200, "alive")] * 3
    assert client.front.retries_total > 0


async def test_a_connection_that_breaks_before_the_answer_is_tried_again(client: Client) -> None:
    """A keep-alive connection that its replica closes just as it is reused loses no request, even with one replica."""
    broken = 0

    async def break_once(request: web.Request) -> web.StreamResponse:
        nonlocal broken
        if not broken:
            broken += 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response()

    async with listening("a", break_once) as replica:
        client.route(replica)
        assert await client.post() == (200, "a")
    assert (broken, replica.served) == (1, 2)


async def test_a_request_that_kills_its_replica_is_not_sent_to_all_of_them(client: Client) -> None:
    """Two replicas may break off; the third is spared, and the client told."""

    async def die(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with listening("a", die) as a, listening("b", die) as b, listening("c", die) as c:
        client.route(a, b, c)
        assert await client.post() == (503, None)
        assert a.served + b.served + c.served == 2


async def test_a_draining_replicas_503_is_tried_on_another_one(client: Client) -> None:
    """A request that meets a replica as it begins to drain is served elsewhere; a lone replica's 503 is passed on."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "7"})

    async with listening("draining", refuse) as draining, listening("ready") as ready:
        client.route(draining, ready)
        assert {await client.post() for _ in range(4)} == {(200, "ready")}
        client.route(draining)
        async with client.session.post(client.url / "v1/completions") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "7")


async def test_a_429_is_an_answer_and_is_passed_on(client: Client) -> None:
    """A full queue is told to the client with its Retry-After, not hidden by asking around."""

    async def full(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"code": 429}}, status=429, headers={"Retry-After": "3"})

    async with listening("a", full) as a, listening("b") as b:
        client.route(a, b)
        async with client.session.post(client.url / "v1/completions") as answer:
            assert (answer.status, answer.headers["Retry-After"], answer.headers[REPLICA_HEADER]) == (429, "3", "a")
        assert b.served == 0


async def test_without_a_ready_replica_clients_are_told_when_to_come_back(client: Client) -> None:
    """503, an OpenAI error object and Retry-After."""
    async with client.session.get(client.url / "v1/models") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "no replica is ready" in json.loads(await answer.read())["error"]["message"]


async def test_a_client_that_leaves_is_noticed_by_the_replica(client: Client) -> None:
    """Cancelling a streaming request closes its upstream connection, so that the replica can free its blocks."""

    async def forever(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.Event().wait()
        return response

    async with listening("a", forever) as replica, asyncio.timeout(5):
        client.route(replica)
        async with client.session.post(client.url / "v1/completions") as answer:
            await answer.content.readany()
            answer.close()
        await replica.cancelled.wait()
        await until(lambda: not client.front.outstanding["a"])


async def test_an_answer_that_breaks_off_is_not_passed_on_as_whole(client: Client) -> None:
    """When a replica dies in mid-stream the client sees a broken transfer, not a short text that looks complete."""

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport is not None
        request.transport.close()
        return response

    async with listening("a", half) as replica:
        client.route(replica)
        with pytest.raises(ClientError):
            async with client.session.post(client.url / "v1/completions") as answer:
                await answer.read()
    assert replica.served == 1


async def test_a_replica_no_longer_routed_to_finishes_what_it_has(client: Client) -> None:
    """Draining takes nothing away from requests that are being served."""
    release = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response(text="whole")

    async with listening("old", hold) as old, listening("new") as new:
        client.route(old)
        in_hand = asyncio.create_task(client.post())
        await until(lambda: old.served)
        client.route(new)
        assert await client.post() == (200, "new")
        release.set()
        assert await in_hand == (200, "old")


async def test_is_ready_tells_200_from_anything_else() -> None:
    """Loading (503), silent and absent replicas are not ready."""
    statuses = iter([200, 503])

    async def ready(request: web.Request) -> web.StreamResponse:
        status = next(statuses, None)
        if status is None:
            await asyncio.sleep(60)
        return web.Response(status=status or 200)

    async with listening("a", ready) as replica, ClientSession() as session:
        assert await is_ready(session, replica.url)
        assert not await is_ready(session, replica.url)
        assert not await is_ready(session, replica.url, timeout_seconds=0.05)
        assert not await is_ready(session, closed_port())
