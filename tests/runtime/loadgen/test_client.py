"""One request, timed as its reader meets it, and every way in which it can fail by a name of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, web
from yarl import URL

from smartspec.loadgen.client import Client, Job, Sample

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def client_of(answer: Answer, *, patience: float = 5.0, **settings: Any) -> AsyncIterator[Client]:
    """A client of a server that does as *answer* does."""
    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ClientSession(timeout=ClientTimeout(total=patience)) as session:
        yield Client(session, URL(f"http://127.0.0.1:{runner.addresses[0][1]}/"), "m", **settings)
    await runner.cleanup()


async def send(client: Client, **job: Any) -> Sample:
    """One request that is due now."""
    return await client.send(
        Job(**{"number": 3, "due": 0.0, "prompt": "p", "max_tokens": 4} | job), started=client.clock()
    )


def streaming(*lines: str, pause: float = 0.0) -> Answer:
    """A server that sends *lines*, with a *pause* before each."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for line in lines:
            await asyncio.sleep(pause)
            await response.write(f"data: {line}\n\n".encode())
        return response

    return answer


PIECE = '{"choices": [{"index": 0, "text": "a", "finish_reason": null}], "usage": null}'
LAST = '{"choices": [{"index": 0, "text": "b", "finish_reason": "length"}]}'
USAGE = '{"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 7}}'


async def test_times_and_tokens() -> None:
    """First text, gaps between pieces, the whole; tokens as the server counts them, several to a piece."""
    async with client_of(streaming(PIECE, PIECE, LAST, USAGE, "[DONE]", pause=0.02)) as client:
        sample = await send(client)
    assert (sample.number, sample.error, sample.prompt_tokens, sample.tokens) == (3, "", 2, 7)
    assert sample.ttft is not None
    assert 0.02 <= sample.ttft < sample.latency
    assert len(sample.gaps) == 2
    assert all(gap >= 0.015 for gap in sample.gaps)
    assert sample.latency >= sample.ttft + sum(sample.gaps)
    assert sample.tpot == pytest.approx((sample.latency - sample.ttft) / 6)


async def test_latency_counts_from_when_a_request_was_due() -> None:
    """A generator that is late flatters nobody, and says how late it was."""
    async with client_of(streaming(LAST)) as client:
        sample = await send(client, due=-0.5)
    assert 0.5 <= sample.late < sample.latency
    assert sample.ttft is not None
    assert sample.ttft >= 0.5


async def test_a_server_that_counts_no_tokens() -> None:
    """Each piece is a token, for want of better."""
    async with client_of(streaming(PIECE, PIECE, LAST)) as client:
        assert (await send(client)).tokens == 3


async def test_what_is_sent() -> None:
    """Chat or completion, the fields of the plan, a salt for each request where wanted, the way of speculating."""
    bodies: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await streaming(LAST)(request)

    async with client_of(answer, fields={"temperature": 0.5}, isolates=True) as client:
        await client.send(Job(0, 0.0, "p", 4), started=0.0, speculation={"mode": "off"})
        await send(client)
    async with client_of(answer, chat=True) as client:
        await send(client)
    first, second, chat = bodies
    assert first.pop("cache_salt") != second["cache_salt"]
    assert first == {
        "model": "m", "prompt": "p", "max_tokens": 4, "temperature": 0.5, "stream": True,
        "stream_options": {"include_usage": True}, "speculation": {"mode": "off"},
    }  # fmt: skip
    assert "speculation" not in second
    assert chat["messages"] == [{"role": "user", "content": "p"}]


async def refuse(request: web.Request) -> web.Response:
    """As a full server does."""
    return web.json_response({"error": {"message": "the queue is full"}}, status=429)


async def hang(request: web.Request) -> web.Response:
    """As a stuck server does."""
    await asyncio.sleep(60)
    raise AssertionError


async def break_off(request: web.Request) -> web.StreamResponse:
    """As a server that is killed does."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(f"data: {PIECE}\n\n".encode())
    assert request.transport is not None
    request.transport.abort()
    return response


async def refuse_in_bytes(request: web.Request) -> web.Response:
    """As a proxy does that knows nothing of UTF-8."""
    return web.Response(body=b"d\xe9sol\xe9", status=502, content_type="text/plain", charset="utf-8")


@pytest.mark.parametrize(
    ("answer", "error", "detail"),
    [
        (refuse_in_bytes, "HTTP 502", "sol"),
        (streaming("x" * 1_000_000), "not an event", "longer"),
        (refuse, "HTTP 429", "the queue is full"),
        (hang, "timeout", ""),
        (break_off, "connection", ""),
        (streaming(PIECE), "cut short", "1 pieces"),
        (streaming(PIECE, '{"error": {"message": "oh"}}'), "error in the stream", "oh"),
        (streaming("<html>"), "not an event", "<html>"),
    ],
)
async def test_failures_have_kinds(answer: Answer, error: str, detail: str) -> None:
    """One word each, with what the server said."""
    async with client_of(answer, patience=0.3) as client:
        sample = await send(client)
    assert sample.error == error
    assert detail in sample.detail
    assert sample.tpot is None
