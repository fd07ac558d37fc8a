"""A real server on real sockets, with any engine behind it, inside the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from smartspec.config import ModelConfig, RuntimeConfig, ServerConfig
from smartspec.scheduling.client import EngineClient
from smartspec.server.serve import serve


@dataclass
class Served:
    """A running server: its ports as clients, its stop signal, and the task that ends with it."""

    public: aiohttp.ClientSession
    admin: aiohttp.ClientSession
    stop: asyncio.Event
    task: "asyncio.Task[bool]"

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """POST JSON to the public port; returns the status and the parsed answer."""
        async with self.public.post(path, json=body) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, Any]:
        """GET from the public port; returns the status and the parsed answer."""
        async with self.public.get(path) as response:
            return response.status, await response.json()


@asynccontextmanager
async def serving(
    engine: EngineClient | None = None,
    *,
    start_engine: Callable[[], Awaitable[EngineClient]] | None = None,
    headers: dict[str, str] | None = None,
    clock: Callable[[], float] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serve *engine*, or what *start_engine* gives, on free ports; *settings* are those of `ServerConfig`."""

    async def at_once() -> EngineClient:
        assert engine is not None
        return engine

    config = RuntimeConfig(ModelConfig(target="models/fake"), server=ServerConfig(port=0, admin_port=0, **settings))
    urls: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    running = serve(
        config,
        start_engine or at_once,
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
        server = Served(public, admin, stop, task)
        while engine is not None and (await server.get("/ready"))[0] != 200:
            await asyncio.sleep(0.001)
        yield server
    stop.set()
    await asyncio.wait_for(task, 5)
