"""People who send too little, too slowly, too much or nonsense: whoever asks decently meanwhile does not feel it."""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout
from yarl import URL

from figures import publish
from serve_process import serve_process

MODELS = Path(__file__).parents[2] / "examples/models"
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

Abuse = Callable[[str], Awaitable[None]]


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A plain connection."""
    target = URL(url)
    return await asyncio.open_connection(target.host, target.port, limit=1024)


async def half_open(url: str) -> None:
    """Two hundred connections that begin a head and say a letter of it now and then."""
    writers = [(await connect(url))[1] for _ in range(200)]
    try:
        while True:
            for writer in writers:
                writer.write(b"P" if writer is writers[0] else b"")
            await asyncio.sleep(0.05)
    finally:
        for writer in writers:
            writer.transport.abort()


async def slow_readers(url: str) -> None:
    """Fifty that ask for a list of all metrics over and over, and read none of it."""
    writers = [(await connect(url))[1] for _ in range(50)]
    try:
        for writer in writers:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        await asyncio.sleep(3600)
    finally:
        for writer in writers:
            writer.transport.abort()


async def every(seconds: float, url: str, data: bytes) -> None:
    """Send *data* on a connection of its own, again and again, and read what comes for a moment."""
    while True:
        reader, writer = await connect(url)
        with suppress(ConnectionError, TimeoutError):
            writer.write(data)
            async with asyncio.timeout(1):
                await reader.read(4096)
        writer.transport.abort()
        await asyncio.sleep(seconds)


async def oversized(url: str) -> None:
    """Ten times a second a body that is larger than allowed, announced or in chunks without end."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    await asyncio.gather(
        every(0.2, url, HEAD + b"Content-Length: 100000000\r\n\r\n" + b"x" * 100_000),
        every(0.2, url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 80),
    )


async def malformed(url: str) -> None:
    """Forty times a second what is no JSON, no HTTP, or deeply nested."""
    bodies = (b"{" * 1000, b'{"prompt": ' + b"[" * 20_000, b"\xff\xfe", b'{"prompt": 7, "max_tokens": "many"}')
    requests = [HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies]
    await asyncio.gather(*(every(0.1, url, data) for data in (*requests, b"\x16\x03\x01" * 100)))


async def header_flood(url: str) -> None:
    """Forty times a second hundreds of headers, or one that does not end."""
    many = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 50) for i in range(2000))
    await asyncio.gather(
        *(
            every(0.1, url, HEAD + head + b"\r\n")
            for head in (many, b"X: " + b"a" * 500_000, many, b"Cookie: a=b;" * 9000)
        )
    )


ABUSES: tuple[Abuse, ...] = (half_open, slow_readers, oversized, malformed, header_flood)


async def latencies(session: ClientSession, url: str, seconds: float) -> list[float]:
    """Seconds that one decent client's requests take, one after another."""
    body = {"prompt": "def parse(self, text):", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    taken, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            assert answer.status == 200
            assert json.loads(await answer.read())["usage"]["completion_tokens"] == 24
        taken.append(time.monotonic() - began)
    return taken


@pytest.mark.parametrize(
    ("rounds", "seconds", "bound"),
    [pytest.param(2, 0.8, 2.0, id="short"), pytest.param(12, 2.5, 1.1, id="long", marks=pytest.mark.slow)],
)
async def test_decent_clients_do_not_feel_it(rounds: int, seconds: float, bound: float) -> None:
    """Median latency under each abuse over that without, taken in turns so that a busy machine is busy for both."""
    flags = ("--draft", str(MODELS / "stdlib-draft"), "--dtype", "float32", "--device", "cpu", "--threads", "2",
             "--head-timeout", "2", "--body-timeout", "2", "--send-timeout", "2", "--idle-timeout", "5")  # fmt: skip
    slower: dict[str, float] = {}
    with serve_process(MODELS / "stdlib-target", *flags) as server:
        server.wait_ready()
        async with ClientSession(timeout=ClientTimeout(total=60)) as session:
            await latencies(session, server.url, 2.0)
            for abuse in ABUSES:
                calm: list[float] = []
                abused: list[float] = []
                for _ in range(rounds):
                    calm += await latencies(session, server.url, seconds)
                    task = asyncio.create_task(abuse(server.url))
                    await asyncio.sleep(0.2)
                    abused += await latencies(session, server.url, seconds)
                    assert not task.done(), task
                    task.cancel()
                    await asyncio.wait([task])
                    await asyncio.sleep(0.1)
                slower[abuse.__name__] = statistics.median(abused) / statistics.median(calm)
            async with session.get(f"{server.admin_url}/load") as answer:
                load = await answer.json()
        assert not any("Traceback" in line for line in server.log)
    publish("abuse", **{f"{name}_latency_ratio": ratio for name, ratio in slower.items()}, seconds=rounds * seconds)
    assert (load["num_requests_running"], load["num_requests_waiting"]) == (0, 0)
    assert max(slower.values()) < bound, slower
