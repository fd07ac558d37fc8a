"""Connections that dawdle, rest, flood or grow old: each is closed in its time, and none of them harms another."""

import asyncio
import json
import random
import socket
import time
from dataclasses import replace
from typing import Any

import pytest

from fake_engine import INFO, FakeEngine
from serving import Served, serving
from smartspec.server.connections import AGE_JITTER, Gate, Patience
from waiting import until

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


async def connect(server: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the public port that says what it is told to, and no more."""
    return await asyncio.open_connection("127.0.0.1", server.public_port)


async def seconds_until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """How long it takes the server to close the connection."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(10):
            while await reader.read(65536):
                pass
    except ConnectionError:
        pass
    writer.close()
    return time.monotonic() - began


async def test_a_head_that_drips_is_not_waited_for() -> None:
    """One byte now and then keeps no connection open: the time counts from the first."""
    async with serving(FakeEngine(), head_timeout_seconds=0.3) as server:
        reader, writer = await connect(server)

        async def drip() -> None:
            for byte in HEAD * 10:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert 0.2 < await seconds_until_closed(reader, writer) < 3
        dripping.cancel()


async def test_a_connection_that_says_nothing_is_closed() -> None:
    """Neither one that never said anything, nor one that rests after its answer, is kept for ever."""
    async with serving(FakeEngine(), idle_timeout_seconds=0.3) as server:
        assert 0.2 < await seconds_until_closed(*await connect(server)) < 3
        reader, writer = await connect(server)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert 0.2 < await seconds_until_closed(reader, writer) < 3


async def test_a_body_that_does_not_come_is_408() -> None:
    """The head has come, so there is somebody to tell."""
    async with serving(FakeEngine(), body_timeout_seconds=0.2) as server:
        reader, writer = await connect(server)
        writer.write(HEAD + b'Content-Length: 100\r\n\r\n{"prompt": ')
        answer = await reader.readuntil(b"}}")
        assert b" 408 " in answer
        assert b'"body_timeout"' in answer
        writer.close()


async def test_a_slow_request_is_not_taken_for_a_slow_head() -> None:
    """While a request is being answered, and while its body comes, the time for heads does not run."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine, head_timeout_seconds=0.1) as server:
        reader, writer = await connect(server)
        body = json.dumps({"prompt": "abc", "max_tokens": 2}).encode()
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        for byte in body:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        await until(lambda: engine.waiting)
        await asyncio.sleep(0.3)
        engine.step()
        assert b" 200 " in await reader.readuntil(b"\r\n")
        writer.close()


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    """Its answer is not kept for ever, nor what it still has to get."""
    engine = FakeEngine(tokens_per_step=100_000)
    engine.info = replace(INFO, max_model_len=10**7)
    async with serving(engine, send_timeout_seconds=0.3) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.public_port, limit=1024)
        body = json.dumps({"prompt": "ab", "max_tokens": 8_000_000, "stream": True}).encode()
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: engine.requests)
        await until(lambda: not engine.running, seconds=10)
        await asyncio.sleep(1.0)
        received = 0
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # noqa: PT012 (either call may see the cut)
            while data := await reader.read(1 << 20):
                received += len(data)
            raise asyncio.IncompleteReadError(b"", None)
        assert received < 8_000_000
        writer.close()


async def test_more_connections_than_allowed_are_told_so() -> None:
    """They get an answer, those inside keep theirs, and a place that becomes free is given to the next."""
    async with serving(FakeEngine(), max_connections=3) as server:
        inside = [await connect(server) for _ in range(2)]  # the third is the test's own client
        await asyncio.sleep(0.05)
        reader, writer = await connect(server)
        answer = await reader.read()
        assert b" 503 " in answer
        assert b"Retry-After: 1" in answer
        length = int(answer.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        body = answer.split(b"\r\n\r\n")[1]
        assert (len(body), json.loads(body)["error"]["code"]) == (length, "too_many_connections")
        writer.close()
        assert (await server.get("/health"))[0] == 200
        inside[0][1].close()
        await asyncio.sleep(0.05)
        reader, writer = await connect(server)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.read()
        writer.close()
        inside[1][1].close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(500)) + b"\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_a_flood_of_headers_is_400(head: bytes) -> None:
    """One that is too long, too many of them, or a target without end."""
    async with serving(FakeEngine()) as server:
        reader, writer = await connect(server)
        writer.write(head)
        assert b" 400 " in await reader.read()
        writer.close()


async def test_the_dead_are_noticed() -> None:
    """What is set on the listening socket holds for connections: the system itself looks for peers that are gone."""
    accepted: list[socket.socket] = []
    loop = asyncio.get_running_loop()

    class Keep(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport.get_extra_info("socket"))

    from smartspec.server import connections

    listener = await loop.create_server(Keep, "127.0.0.1", 0)
    connections._notice_the_dead(listener.sockets[0])
    _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    await until(lambda: accepted)
    assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    writer.close()
    listener.close()


def test_connections_do_not_grow_old_together() -> None:
    """Ages are spread around the setting, or clients that came together would all come back together."""
    now = 0.0
    gate = Gate(Patience(1, 1, 100, 10), lambda: now, random.Random(1))
    handler: Any = None
    connections = [gate.connection(handler) for _ in range(200)]

    def num_old(at: float) -> int:
        nonlocal now
        now = at
        return sum(connection.is_old for connection in connections)

    assert AGE_JITTER == 0.2
    assert num_old(79.9) == 0
    assert 60 < num_old(100.0) < 140
    assert num_old(120.1) == 200


async def test_a_stream_is_never_cut_for_its_age() -> None:
    """It goes on to its end; the connection closes with the next answer."""
    now = 0.0
    engine = FakeEngine(step_seconds=None, tokens_per_step=1)
    async with serving(engine, clock=lambda: now, max_connection_age_seconds=10) as server:
        streaming = asyncio.create_task(server.stream("/v1/completions", prompt="ab", max_tokens=3))
        await until(lambda: engine.waiting)
        engine.step()
        await asyncio.sleep(0.01)
        now = 1000.0
        engine.step()
        engine.step()
        *_, last, done = await streaming
        assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
