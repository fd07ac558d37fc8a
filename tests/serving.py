"""A real server on real sockets, with any engine behind it, inside the test's own event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from fake_engine import FakeEngine
from smartspec.config import ModelConfig, RuntimeConfig, ServerConfig
from smartspec.server.serve import serve


@dataclass
class Served:
    """A running server: its ports as clients, its stop signal, and the task that ends with it."""

    public: aiohttp.ClientSession
    admin: aiohttp.ClientSession
    stop: asyncio.Event
    task: "asyncio.Task[bool]"
    public_port: int

    async def wait_unready(self) -> None:
        """Return when the server is no longer ready."""
        while (await self.get("/ready"))[0] == 200:  # noqa: ASYNC110 (see wait_ready)
            await asyncio.sleep(0.001)

    async def wait_ready(self) -> None:
        """Return when the server is ready."""
        while (await self.get("/ready"))[0] != 200:  # noqa: ASYNC110 (the real server is asked, as a probe would)
            await asyncio.sleep(0.001)

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """POST JSON to the public port; returns the status and the parsed answer."""
        async with self.public.post(path, json=body) as response:
            return response.status, await response.json()

    async def stream(self, path: str, **body: Any) -> list[Any]:
        """POST JSON and return the events of the stream."""
        async with self.public.post(path, json=body | {"stream": True}) as response:
            return await read_events(response)

    async def get(self, path: str) -> tuple[int, Any]:
        """GET from the public port; returns the status and the parsed answer."""
        async with self.public.get(path) as response:
            return response.status, await response.json()


async def read_events(response: aiohttp.ClientResponse) -> list[Any]:
    """The parsed events of a stream, to its end; `[DONE]` stays text."""
    assert response.content_type == "text/event-stream"
    lines = (await response.text()).split("\n\n")
    assert lines.pop() == ""
    events = [line.removeprefix("data: ") for line in lines]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None,
    *,
    starting: Awaitable[FakeEngine] | None = None,
    headers: dict[str, str] | None = None,
    clock: Callable[[], float] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serve *engine*, or what *starting* gives, on free ports; *settings* are those of `ServerConfig`."""

    @asynccontextmanager
    async def running_engine() -> AsyncIterator[FakeEngine]:
        started = engine if starting is None else await starting
        assert started is not None
        yield started
        started.stop()

    config = RuntimeConfig(
        ModelConfig(target="models/fake"), server=ServerConfig(**{"port": 0, "admin_port": 0} | settings)
    )
    urls: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    running = serve(
        config,
        running_engine(),
        stop,
        announce=lambda *opened: urls.set_result(opened),
        **({"clock": clock} if clock else {}),
    )
    task = asyncio.create_task(running)
    await asyncio.wait({task, urls}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    public_url, admin_url = urls.result()
    async with (
        aiohttp.ClientSession(public_url, headers=headers) as public,
        aiohttp.ClientSession(admin_url, headers=headers) as admin,
    ):
        server = Served(public, admin, stop, task, URL(public_url).port or 0)
        if engine is not None:
            await server.wait_ready()
        yield server
    stop.set()
    await asyncio.wait_for(task, 5)
