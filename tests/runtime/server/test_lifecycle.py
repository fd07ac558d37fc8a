"""From loading to gone: what each phase answers, and how the process ends."""

import asyncio
import resource
from typing import Any

import pytest

from fake_engine import FakeEngine
from serving import serving
from smartspec.config import ConfigError
from waiting import until


async def test_ports_answer_while_the_model_loads() -> None:
    """Alive but not ready, with the reason; requests get 503; `/load` says loading. Then all is well."""
    engine, loaded = FakeEngine(), asyncio.Event()

    async def start_engine() -> FakeEngine:
        await loaded.wait()
        return engine

    async with serving(starting=start_engine()) as server:
        assert await server.get("/health") == (200, {"status": "ok"})
        assert await server.get("/ready") == (503, {"status": "unready", "reason": "loading"})
        status, answer = await server.post("/v1/completions", prompt="a")
        assert (status, answer["error"]["message"]) == (503, "fake is loading")
        for path in ("/v1/models", "/metrics"):
            async with server.public.get(path) as response:
                assert response.status == (503 if path == "/v1/models" else 200)
        async with server.admin.get("/load") as response:
            assert (await response.json())["state"] == "loading"
        loaded.set()
        await server.wait_ready()
        assert (await server.post("/v1/completions", prompt="a"))[0] == 200


async def test_as_many_connections_as_the_system_allows() -> None:
    """A shell's soft limit on open files is no limit on clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        async with serving(FakeEngine()):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("setting", ["host", "admin_host"])
async def test_port_in_use_says_which(setting: str) -> None:
    """There are two ports, and the message tells which of them could not be had."""
    async with serving(FakeEngine()) as server:
        taken = {"host": "port", "admin_host": "admin_port"}[setting]
        with pytest.raises(OSError, match=f"^{setting} '127.0.0.1', port {server.public_port}: .*in use"):
            async with serving(FakeEngine(), **{taken: server.public_port}):
                pass


async def test_host_that_is_none_is_a_wrong_setting() -> None:
    """A name that nobody knows is named, with the setting it stood in."""
    with pytest.raises(ConfigError, match=r"^admin_host 'nosuch\.invalid': "):
        async with serving(FakeEngine(), admin_host="nosuch.invalid", admin_key="k"):
            pass


async def test_failure_to_load_ends_serving() -> None:
    """What starting raises comes out, and the ports are closed."""

    async def start_engine() -> FakeEngine:
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        async with serving(starting=start_engine()) as server:
            await server.task


async def test_stop_while_loading_ends_at_once() -> None:
    """Nobody waits for a model that nobody wants any more."""

    async def start_engine() -> FakeEngine:
        await asyncio.sleep(60)
        raise AssertionError

    async with serving(starting=start_engine()) as server:
        server.stop.set()
        assert await asyncio.wait_for(server.task, 1)


async def test_stop_finishes_what_runs_and_refuses_what_comes() -> None:
    """Unready at once; a running stream ends truly; a new request gets 503; then the server ends well."""
    engine = FakeEngine(step_seconds=None, tokens_per_step=1)
    async with serving(engine) as server:
        running = asyncio.create_task(server.stream("/v1/completions", prompt="abc", max_tokens=2))
        await until(lambda: engine.waiting)
        server.stop.set()
        await until(lambda: engine.load().state != "ready")
        status, answer = await server.post("/v1/completions", prompt="a")
        assert (status, answer["error"]["code"]) == (503, "not_accepting")
        assert (await server.get("/ready"))[0] == 503
        assert (await server.get("/health"))[0] == 200
        engine.step()
        engine.step()
        *_, last, done = await running
        assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
        assert await server.task


async def test_lame_duck_still_serves_and_closes_connections() -> None:
    """Between unready and refusing, requests are served, and their connections end with the answer."""
    engine = FakeEngine()
    async with serving(engine, lame_duck_seconds=0.3, drain_timeout_seconds=0.1) as server:
        server.stop.set()
        await server.wait_unready()
        for stream in (False, True):
            body: dict[str, Any] = {"prompt": "abc", "stream": stream}
            async with server.public.post("/v1/completions", json=body) as response:
                assert response.status == 200
                assert response.headers["Connection"] == "close"
                await response.read()
        async with server.admin.get("/load") as response:
            assert (await response.json())["state"] == "draining"
        assert engine.load().state == "ready"  # the engine itself is told only after the lame-duck time
        assert await server.task


async def test_drain_timeout_cuts_and_says_so() -> None:
    """A request that does not end in time is told so, and the server does not call that a good end."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine, drain_timeout_seconds=0.05) as server:
        running = asyncio.create_task(server.post("/v1/completions", prompt="abc"))
        await until(lambda: engine.waiting)
        server.stop.set()
        assert not await server.task
        status, answer = await running
        assert (status, answer["error"]["message"]) == (503, "the engine has stopped")


async def test_old_connections_are_closed() -> None:
    """After its age, give or take a fifth, a connection is closed with the next answer; before, it is kept."""
    now = 0.0
    async with serving(FakeEngine(), clock=lambda: now, max_connection_age_seconds=300) as server:
        seen = []
        for now in (0.0, 239.0, 361.0, 362.0):  # noqa: B007 (the clock reads it)
            async with server.public.post("/v1/completions", json={"prompt": "a", "stream": True}) as response:
                await response.read()
                seen.append(response.headers.get("Connection"))
    assert seen == [None, None, "close", None]


async def test_drain_over_http_leaves_the_process_running() -> None:
    """POST /drain does what a stop does, but for the end: whoever drained decides when the process goes."""
    engine = FakeEngine()
    async with serving(engine) as server:
        async with server.admin.post("/drain") as response:
            assert response.status == 202
        await until(lambda: engine.load().state == "draining")
        assert (await server.get("/ready"))[0] == 503
        assert (await server.post("/v1/completions", prompt="a"))[0] == 503
        async with server.admin.post("/drain") as response:
            assert (await response.json()) == {"state": "draining", "drained": True}
        assert not server.task.done()
