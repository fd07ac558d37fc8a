"""Two ports from the first moment on, an engine behind them when it is loaded, and an orderly end."""

import asyncio
import contextlib
import logging
import random
import resource
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from smartspec.config import ConfigError, RuntimeConfig
from smartspec.scheduling.client import EngineClient, EngineInfo
from smartspec.server.admin import admin_app
from smartspec.server.connections import Gate, Patience, listen
from smartspec.server.context import Context
from smartspec.server.exchange import BodyBudget
from smartspec.server.exposition import Exposition
from smartspec.server.keys import KeyRing
from smartspec.server.lifecycle import Lifecycle
from smartspec.server.public import public_app
from smartspec.server.tracing import OtlpSpans

log = logging.getLogger(__name__)


def _is_no_clients_mistake(record: logging.LogRecord) -> bool:
    """Whether *record* is worth a line: what a client sent that is not HTTP is answered, and its bytes stay out."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


http_log = logging.getLogger(f"{__name__}.http")
http_log.addFilter(_is_no_clients_mistake)


async def serve(
    config: RuntimeConfig,
    engine: AbstractAsyncContextManager[EngineClient],
    stop: asyncio.Event,
    *,
    clock: Callable[[], float] = time.monotonic,
    announce: Callable[[str, str], None] | None = None,
) -> bool:
    """Listen, enter *engine*, serve until *stop* is set, then drain; returns whether all requests could finish.

    The sockets are open before the model is loaded, so that probes and clients get answers instead of refusals.
    *announce* is told the URLs of both ports once they are open.
    Raises what entering *engine* raises, ConfigError, or OSError when a port cannot be had.
    """
    _allow_many_connections()
    server = config.server
    lifecycle = Lifecycle(config.model.name, lame_duck_seconds=server.lame_duck_seconds)
    spans = None if server.otlp_endpoint is None else OtlpSpans(server.otlp_endpoint, config.model.name)
    context = Context(
        lifecycle,
        Exposition(config.model.name),
        clock,
        config=server,
        keys=KeyRing.of(server.api_key, server.api_key_file),
        budget=BodyBudget(server.max_held_body_bytes),
        spans=spans,
    )
    # Left in reverse: the engine ends first, and what it still has to say to clients can be said.
    async with AsyncExitStack() as owned:
        if spans is not None:
            owned.push_async_callback(spans.close)
        public = await _listen(owned, context, public_app(context, server), "host", server.host, server.port)
        admin = await _listen(
            owned, context, admin_app(context, server), "admin_host", server.admin_host, server.admin_port
        )
        owned.callback(asyncio.create_task(context.keys.keep_up(), name="api keys").cancel)
        log.info("event=listening url=%s admin_url=%s", public, admin)
        if announce is not None:
            announce(public, admin)
        began = clock()
        started = await _unless_stopped(owned.enter_async_context(engine), stop)
        if started is None:
            log.info("event=stopped phase=loading")
            return True
        started.subscribe(context.exposition.observe_step)
        started.subscribe(context.history.observe_step)
        context.exposition.describe(started.info)
        lifecycle.engine_started(started)
        _log_ready(started.info, clock() - began)
        await stop.wait()
        return await _drain(lifecycle, server.lame_duck_seconds + server.drain_timeout_seconds)


def _allow_many_connections() -> None:
    """Raise the soft limit on open files to the hard one.

    Each stream is a socket, and so is each idle client; 1024, the usual soft limit, is meant for programs that still
    call select(), and at the limit even probes go unanswered.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems call it unlimited, and allow less
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _listen(
    owned: AsyncExitStack, context: Context, app: web.Application, name: str, host: str, port: int
) -> str:
    """Serve *app* until *owned* closes; returns its URL (port 0: any free one).

    Raises ConfigError when *host*, the setting *name*, is no address, and OSError when it cannot be listened on.
    """
    config = context.config
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # else a handler outlives its client, and goes on holding blocks of the cache
        access_log=None,
        logger=http_log,
        shutdown_timeout=1.0,
        keepalive_timeout=config.idle_timeout_seconds,
        max_line_size=config.max_header_bytes,
        max_field_size=config.max_header_bytes,
        max_headers=config.max_headers,
    )
    await runner.setup()
    owned.push_async_callback(runner.cleanup)
    assert runner.server is not None
    patience = Patience(
        head_seconds=config.head_timeout_seconds,
        send_seconds=config.send_timeout_seconds,
        max_age_seconds=config.max_connection_age_seconds,
        max_connections=config.max_connections,
    )
    try:
        listener = await listen(Gate(patience, context.clock, random.Random()), runner.server, host, port)
    except socket.gaierror as error:
        raise ConfigError(f"{name} {host!r}: {error.strerror}") from None
    except OSError as error:
        # asyncio puts the address into some of these messages, but never which of the two ports it is.
        raise OSError(f"{name} {host!r}, port {port}: {error.strerror or error}") from None
    owned.callback(listener.close)
    bound = listener.sockets[0].getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{bound}"


async def _unless_stopped(starting: Coroutine[Any, Any, EngineClient], stop: asyncio.Event) -> EngineClient | None:
    """The result of *starting*, or None when *stop* comes first."""
    start_task, stop_task = asyncio.create_task(starting), asyncio.create_task(stop.wait())
    await asyncio.wait({start_task, stop_task}, return_when=asyncio.FIRST_COMPLETED)
    stop_task.cancel()
    if start_task.done():
        return start_task.result()
    start_task.cancel()
    return None


def _log_ready(info: EngineInfo, load_seconds: float) -> None:
    log.info(
        "event=ready model=%s load_seconds=%.1f dtype=%s device=%s attention=%s invariant=%s proposers=%s "
        "max_model_len=%d kv_cache_tokens=%d",
        info.model,
        load_seconds,
        info.dtype,
        info.device,
        info.attention,
        info.invariant,
        ",".join(info.proposers) or "none",
        info.max_model_len,
        info.num_blocks * info.block_size,
    )


async def _drain(lifecycle: Lifecycle, timeout_seconds: float) -> bool:
    """Let what runs finish; returns False when time ran out first."""
    try:
        await asyncio.wait_for(lifecycle.start_draining(), timeout_seconds)
    except TimeoutError:
        load = lifecycle.load()
        log.warning("event=drain_timeout running=%d waiting=%d", load.num_requests_running, load.num_requests_waiting)
        return False
    return True
