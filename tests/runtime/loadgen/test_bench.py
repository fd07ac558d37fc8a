"""`smartspec bench` as a command, against a server on real sockets."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import FakeEngine
from serving import Served, serving
from waiting import until


async def bench(
    server: Served | str, *arguments: str | Path, stop_when: Callable[[], object] | None = None, **environment: str
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; it gets Ctrl-C as soon as *stop_when* holds."""
    url = server if isinstance(server, str) else f"http://127.0.0.1:{server.public_port}"
    # A shell's background job is deaf to Ctrl-C, and so would be whatever it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "smartspec", "bench", url, *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | environment,
    )  # fmt: skip
    if stop_when is not None:
        await until(stop_when, seconds=30)
        process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_closed_loop_with_everything_written(tmp_path: Path) -> None:
    """All requests answered; the table, the JSON and the picture agree with what the server did."""
    files = ["--json", tmp_path / "b.json", "--picture", tmp_path / "b.png"]
    async with serving(FakeEngine()) as server:
        status, out, err = await bench(server, "--clients", "2", "--requests", "6", "--max-tokens", "8", *files)
    assert (status, err.count("Traceback")) == (0, 0)
    assert "6 of 6" in out
    assert "time to first token" in out
    data = json.loads((tmp_path / "b.json").read_text())
    [mode] = data["modes"]
    assert (mode["requests"], mode["answered"], mode["tokens"], mode["errors"]) == (6, 6, 48, {})
    assert mode["e2e"]["p50"] >= mode["ttft"]["p50"] > 0
    # The fake engine drafts 3 and keeps 1 a step of 2 tokens: four steps a request.
    assert mode["speculation"]["draft_tokens"] == 3 * 6 * 4
    assert mode["speculation"]["acceptance_rate"] == pytest.approx(1 / 3)
    assert mode["speculation"]["mean_acceptance_length"] == pytest.approx(2.0)
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


async def test_modes_take_turns(tmp_path: Path) -> None:
    """Each mode gets every request of every round, asked for in its way, and the order turns round."""
    engine = FakeEngine()
    async with serving(engine) as server:
        arguments = [
            "--compare",
            "off,fixed:2",
            "--rounds",
            "2",
            "--requests",
            "3",
            "--rate",
            "200",
            "--max-tokens",
            "4",
        ]
        status, out, _ = await bench(server, *arguments, "--json", tmp_path / "b.json")
    assert status == 0
    asked = [request.speculation.mode for request in engine.requests]
    assert asked == ["off"] + ["off"] * 3 + ["fixed"] * 6 + ["off"] * 3  # one to try, then there and back
    assert len({request.cache_salt for request in engine.requests}) == len(engine.requests)
    assert "E2E to off" in out
    data = json.loads((tmp_path / "b.json").read_text())
    assert [(mode["mode"], mode["answered"]) for mode in data["modes"]] == [("off", 6), ("fixed:2", 6)]


@asynccontextmanager
async def another_server() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Somebody else's: it knows OpenAI's fields and nothing more; its URL, and what it was asked."""
    bodies: list[dict[str, Any]] = []

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "theirs", "object": "model"}]})

    async def complete(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        response = web.StreamResponse()
        await response.prepare(request)
        for reason in (None, None, "stop"):
            event = {"choices": [{"delta": {"content": "a"}, "finish_reason": reason}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_get("/proxy/v1/models", models)
    app.router.add_post("/proxy/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/proxy/v1", bodies
    await runner.cleanup()


async def test_any_server_will_do() -> None:
    """One below a path, with chat alone, without counters or usage; it is sent no field that only some know."""
    async with another_server() as (url, bodies):
        status, out, _ = await bench(url, "--chat", "--requests", "3")
    assert status == 0
    assert "3 of 3" in out
    assert "the server shows no counters" in out
    assert {name for body in bodies for name in body} == {
        "model", "messages", "max_tokens", "temperature", "stream", "stream_options"
    }  # fmt: skip


async def test_a_server_that_would_not_heed_how_to_speculate() -> None:
    """It is refused: all modes would be the same one, under other names."""
    async with another_server() as (url, bodies):
        status, _, err = await bench(url, "--chat", "--compare", "off,auto")
    assert (status, bodies) == (1, [])
    assert "is no SmartSpec server" in err


async def test_failures_are_counted_by_kind_and_are_the_exit_status() -> None:
    """What the server refuses is no crash, and not hidden."""
    async with serving(FakeEngine(step_seconds=0.1, max_num_seqs=1, max_queued_requests=1)) as server:
        status, out, _ = await bench(server, "--rate", "50", "--requests", "20", "--max-tokens", "8")
    assert status == 1
    assert "HTTP 429 (the queue is full" in out


async def test_ctrl_c_prints_what_there_is() -> None:
    """Exit status 130, with the requests that had ended by then."""
    engine = FakeEngine(step_seconds=0.05)
    async with serving(engine) as server:
        arguments = ["--clients", "2", "--minutes", "5", "--max-tokens", "8"]
        status, out, err = await bench(server, *arguments, stop_when=lambda: len(engine.requests) > 6)
    assert status == 130
    assert "Traceback" not in err
    assert "time to first token" in out
    assert "when it was stopped" in out


async def test_ctrl_c_before_there_is_anything() -> None:
    """One line, and the same status."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine) as server:
        status, out, err = await bench(server, stop_when=lambda: engine.requests)
    assert (status, out) == (130, "")
    assert err == "smartspec: interrupted before anything was measured\n"


def test_it_needs_no_torch() -> None:
    """`pip install 'smartspec[bench]'` is enough to load a server: what a model needs is not even looked for."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "numba", "safetensors", "tokenizers", "jinja2"):
            raise ImportError(name, name=name)
sys.meta_path.insert(0, Absent())
from smartspec.__main__ import main
import smartspec.loadgen.bench, smartspec.loadgen.picture
sys.exit(main(["bench", "http://127.0.0.1:9"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr, done.stderr


async def test_a_server_that_is_not_there() -> None:
    """One line with the address."""
    status, out, err = await bench("http://127.0.0.1:9")
    assert (status, out) == (1, "")
    assert err.startswith("smartspec: http://127.0.0.1:9/ cannot be reached")
    assert len(err.splitlines()) == 1


async def test_a_key_is_wanted() -> None:
    """The line says where to put it; with it all is well."""
    async with serving(FakeEngine(), api_key="k") as server:
        status, _, err = await bench(server, "--requests", "1")
        assert status == 1
        assert "wants a key: give it with --api-key-file" in err
        status, _, err = await bench(server, "--requests", "1", SMARTSPEC_API_KEY="no")
        assert "refused the key" in err
        assert (await bench(server, "--requests", "1", SMARTSPEC_API_KEY="k"))[0] == 0


async def test_a_model_that_is_not_there() -> None:
    """Said once, before hundreds of requests fail."""
    async with serving(FakeEngine()) as server:
        status, out, err = await bench(server, "--model", "gpt-5", "--requests", "100")
    assert (status, out) == (1, "")
    assert "has no model 'gpt-5'" in err
