"""What every request has: an id, a deadline, a bounded body, somebody it is counted for, and a line in the log."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine
from serving import serving
from waiting import until


async def test_an_id_is_echoed_or_made() -> None:
    """The client's own if it is a decent one; with errors, streams and unknown routes too."""
    async with serving(FakeEngine()) as server:
        for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/completions", {"prompt": "a", "stream": True}),
                           ("/v1/completions", {}), ("/nowhere", {})):  # fmt: skip
            for given, kept in (
                ("abc-1", True),
                ("x" * 129, False),
                ("a=b", False),
                ("two words", False),
                (None, False),
            ):
                headers = {} if given is None else {"X-Request-Id": given}
                async with server.public.post(path, json=body, headers=headers) as response:
                    await response.read()
                    answered = response.headers["X-Request-Id"]
                    assert (answered == given) == kept
                    assert len(answered) >= 5
                    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_log_tells_what_happened_and_not_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    """One line: route, status, time, key's name, tokens, why it ended. Neither prompt nor answer nor key."""
    with caplog.at_level(logging.DEBUG, logger="smartspec"):
        async with serving(FakeEngine(), api_key="sesame", headers={"Authorization": "Bearer sesame"}) as server:
            await server.post("/v1/completions", prompt="private", max_tokens=3)
            await server.stream("/v1/chat/completions", messages=[{"role": "user", "content": "private"}], max_tokens=2)
            await server.post("/v1/completions", prompt="private", nosuchfield="private")
    lines = [record.getMessage() for record in caplog.records if "event=answered route=/v1/" in record.getMessage()]
    assert len(lines) == 3
    assert "route=/v1/completions status=200 seconds=" in lines[0]
    for word in ("key=key-1", "prompt_tokens=8", "generated_tokens=3", "finish_reason=length", "ttft_seconds="):
        assert word in lines[0]
    assert "route=/v1/chat/completions status=200" in lines[1]
    assert "private" not in caplog.text
    assert "etavirp" not in caplog.text
    assert "sesame" not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", ["field", "header", "default"])
async def test_a_request_that_takes_too_long_is_ended(place: str, stream: bool) -> None:
    """While it waits: 408 that says so, streamed or not. The engine is rid of it at once."""
    engine = FakeEngine(step_seconds=None)
    settings: dict[str, Any] = {"request_timeout_seconds": 0.1 if place == "default" else None}
    headers = {"X-Request-Timeout": "0.1"} if place == "header" else {}
    body: dict[str, Any] = {"prompt": "a", "stream": stream} | ({"timeout": 0.1} if place == "field" else {})
    async with serving(engine, headers=headers, **settings) as server:
        async with server.public.post("/v1/completions", json=body) as response:
            answer = await response.json()
        assert (response.status, answer["error"]["code"]) == (408, "deadline_exceeded")
        assert answer["error"]["type"] == "timeout_error"
        assert "0.1 s" in answer["error"]["message"]
        assert len(engine.aborted) == 1
        assert not engine.waiting


async def test_what_came_before_the_deadline_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Though nobody woke the reader of a whole answer for it: the line in the log has every token."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine) as server:
        with caplog.at_level(logging.INFO):
            asking = asyncio.create_task(server.post("/v1/completions", prompt="ab", max_tokens=99, timeout=0.3))
            await until(lambda: engine.waiting)
            for _ in range(5):
                engine.step()
                await asyncio.sleep(0)
            status, _ = await asking
    assert status == 408
    assert "generated_tokens=10" in caplog.text


async def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    """The text that was sent stays; no `[DONE]` lies about the rest."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine) as server:
        streaming = asyncio.create_task(server.stream("/v1/completions", prompt="ab", max_tokens=9, timeout=0.3))
        await until(lambda: engine.waiting)
        engine.step()
        first, last = await streaming
        assert first["choices"][0]["text"] == "ba"
        assert last["error"]["code"] == "deadline_exceeded"
        assert len(engine.aborted) == 1


async def test_a_request_in_time_is_not_ended_later() -> None:
    """Neither by its deadline, nor by one of several sequences."""
    async with serving(FakeEngine(), request_timeout_seconds=5) as server:
        status, answer = await server.post("/v1/completions", prompt="ab", n=3, timeout=4)
        assert (status, len(answer["choices"])) == (200, 3)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "1e3", "90000", "", "1" * 5000])
async def test_a_timeout_header_that_makes_no_sense_is_named(text: str) -> None:
    """400, with the header at fault."""
    async with serving(FakeEngine()) as server:
        headers = {"X-Request-Timeout": text}
        async with server.public.post("/v1/completions", json={"prompt": "a"}, headers=headers) as response:
            answer = await response.json()
    assert (response.status, answer["error"]["param"]) == (400, "X-Request-Timeout")


async def test_keys_have_names_and_the_engine_counts_by_them(tmp_path: Path) -> None:
    """With several names in the file each is a tenant of its own; the field `priority` goes along."""
    (tmp_path / "keys").write_text("one alice\ntwo bob\n")
    engine = FakeEngine()
    async with serving(engine, api_key_file=tmp_path / "keys") as server:
        for key in ("one", "two"):
            headers = {"Authorization": f"Bearer {key}"}
            body = {"prompt": "a", "priority": -3}
            async with server.public.post("/v1/completions", json=body, headers=headers) as response:
                assert response.status == 200
    assert [(request.tenant, request.priority) for request in engine.requests] == [("alice", -3), ("bob", -3)]


async def test_a_new_key_is_let_in_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at again and again; who was withdrawn is out."""
    monkeypatch.setattr("smartspec.server.keys.RELOAD_SECONDS", 0.01)
    file = tmp_path / "keys"
    file.write_text("old alice\n")
    async with serving(FakeEngine(), api_key_file=file, headers={"Authorization": "Bearer newer"}) as server:
        assert (await server.get("/v1/models"))[0] == 401
        file.write_text("newer alice\n")
        async with asyncio.timeout(5):
            while (await server.get("/v1/models"))[0] == 401:  # noqa: ASYNC110 (as a client would)
                await asyncio.sleep(0.01)
        async with server.public.get("/v1/models", headers={"Authorization": "Bearer old"}) as response:
            assert response.status == 401


async def test_a_single_key_leaves_no_room_for_others(tmp_path: Path) -> None:
    """There are none: its holder may fill the queue."""
    (tmp_path / "keys").write_text("one alice\nother alice\n")
    engine = FakeEngine()
    async with serving(engine, api_key_file=tmp_path / "keys", headers={"Authorization": "Bearer other"}) as server:
        await server.post("/v1/completions", prompt="a")
    assert engine.requests[0].tenant == ""


async def test_a_full_queue_refuses_before_it_reads() -> None:
    """The answer comes though the body never does, and how long it took is measured."""
    engine = FakeEngine(step_seconds=None, max_num_seqs=0, max_queued_requests=0)
    async with serving(engine) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.public_port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
        assert b" 429 " in await asyncio.wait_for(reader.readuntil(b"\r\n"), 2)
        writer.close()
        async with server.public.get("/metrics") as response:
            text = await response.text()
    assert 'smartspec_rejection_seconds_count{model_name="fake"} 1.0' in text
    assert 'smartspec_requests_rejected_total{model_name="fake"} 1.0' in text


async def test_bodies_are_bounded_together() -> None:
    """Many large ones at once get a 429; the room is given back when they are answered."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine, max_held_body_bytes=2000, max_body_bytes=1500) as server:
        first = asyncio.create_task(server.post("/v1/completions", prompt="a", user="x" * 1000))
        await until(lambda: engine.waiting)
        status, answer = await server.post("/v1/completions", prompt="a", user="x" * 1000)
        assert (status, answer["error"]["code"]) == (429, "too_many_bytes")
        while not first.done():
            engine.step()
            await asyncio.sleep(0.01)
        assert (await first)[0] == 200
        last = asyncio.create_task(server.post("/v1/completions", prompt="a", user="x" * 1000))
        while not last.done():
            engine.step()
            await asyncio.sleep(0.01)
        assert (await last)[0] == 200
