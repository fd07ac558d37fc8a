"""Two ports from the first moment on, an engine behind them when it is loaded, and an orderly end."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from aiohttp import web

from smartspec.config import RuntimeConfig
from smartspec.scheduling.client import EngineClient
from smartspec.server.admin import admin_app
from smartspec.server.context import Context
from smartspec.server.exposition import Exposition
from smartspec.server.lifecycle import Lifecycle
from smartspec.server.public import public_app

log = logging.getLogger(__name__)


async def serve(
    config: RuntimeConfig,
    start_engine: Callable[[], Awaitable[EngineClient]],
    stop: asyncio.Event,
    *,
    clock: Callable[[], float] = time.monotonic,
    announce: Callable[[str, str], None] | None = None,
) -> bool:
    """Listen, start the engine, serve until *stop* is set, then drain; returns whether all requests could finish.

    The sockets are open before the model is loaded, so that probes and clients get answers instead of refusals.
    *announce* is told the URLs of both ports once they are open.
    Raises what *start_engine* raises, ConfigError, or OSError when a port cannot be had.
    """
    lifecycle = Lifecycle(config.model.name, lame_duck_seconds=config.server.lame_duck_seconds)
    context = Context(lifecycle, Exposition(config.model.name), clock)
    async with AsyncExitStack() as listeners:
        public = await _listen(listeners, public_app(context, config.server), config.server.host, config.server.port)
        admin = await _listen(
            listeners, admin_app(context, config.server), config.server.admin_host, config.server.admin_port
        )
        log.info("event=listening url=%s admin_url=%s", public, admin)
        if announce is not None:
            announce(public, admin)
        if not await _start(lifecycle, context, start_engine, stop, clock):
            return True
        await stop.wait()
        return await _drain(lifecycle, config.server.drain_timeout_seconds)


async def _listen(listeners: AsyncExitStack, app: web.Application, host: str, port: int) -> str:
    """Serve *app* until *listeners* close; returns its URL (port 0: any free one)."""
    # Without handler_cancellation a handler outlives its client, and goes on holding blocks of the cache.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    listeners.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, port, backlog=1024).start()
    bound = runner.addresses[0][1]
    return f"http://{f'[{host}]' if ':' in host else host}:{bound}"


async def _start(
    lifecycle: Lifecycle,
    context: Context,
    start_engine: Callable[[], Awaitable[EngineClient]],
    stop: asyncio.Event,
    clock: Callable[[], float],
) -> bool:
    """Start the engine unless *stop* comes first; returns whether it runs."""
    began = clock()
    starting = asyncio.ensure_future(start_engine())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        log.info("event=stopped phase=loading")
        return False
    engine = starting.result()
    engine.subscribe(context.exposition.observe_step)
    context.exposition.describe(engine.info)
    lifecycle.engine_started(engine)
    info = engine.info
    log.info(
        "event=ready model=%s load_seconds=%.1f dtype=%s device=%s attention=%s invariant=%s proposers=%s "
        "max_model_len=%d kv_cache_tokens=%d",
        info.model,
        clock() - began,
        info.dtype,
        info.device,
        info.attention,
        info.invariant,
        ",".join(info.proposers) or "none",
        info.max_model_len,
        info.num_blocks * info.block_size,
    )
    return True


async def _drain(lifecycle: Lifecycle, timeout_seconds: float) -> bool:
    """Let what runs finish; returns False when time ran out first."""
    try:
        await asyncio.wait_for(lifecycle.start_draining(), timeout_seconds)
    except TimeoutError:
        load = lifecycle.load()
        log.warning("event=drain_timeout running=%d waiting=%d", load.num_requests_running, load.num_requests_waiting)
        return False
    return True
