"""A client that leaves frees its blocks at once; one that reads slowly holds up nobody."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from fake_engine import INFO, FakeEngine
from serving import Served, serving
from waiting import until


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("phase", ["waiting", "running"])
@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_client_aborts_its_sequences(stream: bool, phase: str, n: int) -> None:
    """Streamed or not, queued or running, one choice or several: the engine is rid of it without another step."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine) as server:
        body = {"prompt": "abc", "max_tokens": 200, "stream": stream, "n": n}
        asking = asyncio.create_task(server.stream("/v1/completions", **body) if stream else _post(server, body))
        await until(lambda: len(engine.waiting) == n)
        if phase == "running":
            engine.step()
            await asyncio.sleep(0.01)
        asking.cancel()
        await until(lambda: len(engine.aborted) == n)
        assert not engine.running
        assert not engine.waiting


async def test_client_that_left_before_the_first_byte_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The very first write of a stream can find nobody there: that is a departure like any other."""

    async def nobody_there(self: web.StreamResponse, request: web.BaseRequest) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    engine = FakeEngine(step_seconds=None)
    async with serving(engine) as server:
        monkeypatch.setattr(web.StreamResponse, "prepare", nobody_there)
        writer = await _ask_and_never_read(server, {"prompt": "ab", "stream": True})
        await until(lambda: engine.waiting)
        engine.step()
        await until(lambda: engine.aborted)
        writer.close()
        monkeypatch.undo()
    assert "internal_error" not in caplog.text


async def _post(server: Served, body: dict[str, Any]) -> None:
    await server.post("/v1/completions", **body)


async def test_finished_request_is_not_aborted() -> None:
    """The end of an ordinary request is no departure."""
    engine = FakeEngine()
    async with serving(engine) as server:
        await server.post("/v1/completions", prompt="abc", n=2)
        await server.stream("/v1/completions", prompt="abc")
    assert engine.aborted == []


async def test_slow_reader_does_not_stall_the_engine() -> None:
    """While one client reads nothing, the engine finishes its sequence and others are answered."""
    engine = FakeEngine(tokens_per_step=100_000)
    engine.info = replace(INFO, max_model_len=10_000_000)
    async with serving(engine) as server:
        writer = await _ask_and_never_read(server, {"prompt": "ab", "max_tokens": 8_000_000, "stream": True})
        await until(lambda: engine.running)
        slow = engine.running[0]
        status, _ = await server.post("/v1/completions", prompt="other")
        assert status == 200
        await until(lambda: not engine.running)
        assert slow.num_sent == len(slow.text)  # the engine is done, and the client is still being waited for
        writer.close()


async def _ask_and_never_read(server: Served, body: dict[str, Any]) -> asyncio.StreamWriter:
    """Send a request over a socket whose answer nobody reads beyond a small buffer."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.public_port, limit=1024)
    data = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    await writer.drain()
    return writer
