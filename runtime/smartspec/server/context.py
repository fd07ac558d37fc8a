"""What every handler needs, and how it reads a body."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web
from msgspec import Struct

from smartspec.config import ServerConfig
from smartspec.server.errors import route_of
from smartspec.server.exchange import BodyBudget, SpanRecorder, receive
from smartspec.server.exposition import Exposition, RecentText
from smartspec.server.keys import KeyRing
from smartspec.server.lifecycle import Lifecycle
from smartspec.server.page.history import History
from smartspec.server.protocol import decode_body

log = logging.getLogger(__name__)

Body = TypeVar("Body", bound=Struct)


@dataclass(frozen=True)
class Context:
    """The server behind both ports. *clock* counts seconds from anywhere, and never backwards."""

    lifecycle: Lifecycle
    exposition: Exposition
    clock: Callable[[], float] = time.monotonic
    history: History = field(default_factory=History)
    config: ServerConfig = ServerConfig()
    keys: KeyRing = field(default_factory=KeyRing)
    budget: BodyBudget = field(default_factory=lambda: BodyBudget(ServerConfig().max_held_body_bytes))
    spans: SpanRecorder | None = None
    recent_metrics: RecentText = field(default_factory=lambda: RecentText(time.perf_counter))


CONTEXT = web.AppKey("context", Context)
IGNORED_FIELDS_HEADER = "X-SmartSpec-Ignored-Fields"


async def read_body(request: web.Request, kind: type[Body]) -> tuple[Body, dict[str, str]]:
    """The body as *kind*, and the headers its answer gets: fields that mean nothing here are named in one.

    Raises `ApiError` for a bad body or one that does not come, and aiohttp's own 413 for one that is too large.
    """
    data = await receive(request, request.app[CONTEXT].config.body_timeout_seconds)
    body, ignored = decode_body(data, kind)
    # Names come from the client: only what looks like a name is repeated, and not without end.
    names = ", ".join(name for name in ignored if re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII))[:512]
    if not ignored:
        return body, {}
    log.warning("event=ignored_fields route=%s fields=%r", route_of(request), names)
    return body, {IGNORED_FIELDS_HEADER: names}
