"""One request and its answer from the outside: an id, who asks, what its body may weigh, how long it may take, and one
line in the log when it is over. What was asked and what was answered is in none of them."""

import asyncio
import logging
import re
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from smartspec import metrics
from smartspec.server.connections import connection_of
from smartspec.server.errors import ApiError, Handler, route_of
from smartspec.server.exposition import Exposition
from smartspec.server.protocol import MAX_TIMEOUT_SECONDS

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
TIMEOUT_HEADER = "X-Request-Timeout"
CLIENT_LEFT = 499
"""The status in the log of a request whose client did not wait for any (nginx's number for it)."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the running task answers, for the log's lines."""

Fact = str | int | float


class BodyBudget:
    """How many bytes of bodies the server holds, over all requests."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, num_bytes: int) -> None:
        """Hold so many more; raises `ApiError` 429 when that would be too much."""
        if num_bytes > self._left:
            message = "the server holds as many bytes of request bodies as it may; retry after 1 s"
            raise ApiError(429, message, code="too_many_bytes", headers={"Retry-After": "1"})
        self._left -= num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Hold so many fewer."""
        self._left += num_bytes


@dataclass(slots=True)
class Exchange:
    """What is known of one request. *began* is the clock's time when its head was whole; *key* is the name of its API
    key, and *tenant* the same where keys share the server. *facts* are for the log and for the trace."""

    request_id: str
    began: float
    budget: BodyBudget
    key: str = ""
    tenant: str = ""
    facts: dict[str, Fact] = field(default_factory=dict)
    num_held_bytes: int = 0

    def hold(self, num_bytes: int) -> None:
        """Hold a body of so many bytes, in place of what was held; raises `ApiError` 429."""
        self.budget.give_back(self.num_held_bytes)
        self.num_held_bytes = 0
        self.budget.take(num_bytes)
        self.num_held_bytes = num_bytes


class SpanRecorder(Protocol):
    """Takes what becomes a span of a trace."""

    def record(self, request: web.Request, exchange: Exchange, status: int, seconds: float) -> None:
        """*exchange* ended now, *seconds* after it began."""


def exchange_of(request: web.Request) -> Exchange:
    """What is known of *request*."""
    return request[EXCHANGE]


EXCHANGE = web.RequestKey("exchange", Exchange)


async def receive(request: web.Request, seconds: float) -> bytes:
    """The body, held until the answer is over. Raises `ApiError`: 408 when it does not come in time, 429 when the
    server holds too many; and aiohttp's own 413."""
    exchange = exchange_of(request)
    if (request.content_length or 0) > request.client_max_size:  # whoever says so beforehand need not send it
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, request.content_length or 0)
    is_plain = request.content_length is not None and not request.headers.get("Content-Encoding")
    # How much a body will be that does not say so, or is compressed, is known when it is there.
    exchange.hold(request.content_length or 0 if is_plain else request.client_max_size)
    try:
        async with asyncio.timeout(seconds):
            data = await request.read()
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {seconds:g} s", code="body_timeout") from None
    exchange.hold(len(data))
    return data


def timeout_of(request: web.Request, named: float | None, default: float | None) -> float | None:
    """Seconds that *request* may take: as its body has *named*, else its header, else *default*. Raises `ApiError`."""
    if named is not None or (text := request.headers.get(TIMEOUT_HEADER)) is None:
        return default if named is None else named
    if not re.fullmatch(r"\d{1,6}(\.\d{1,9})?", text) or not 0 < (seconds := float(text)) <= MAX_TIMEOUT_SECONDS:
        message = f"{TIMEOUT_HEADER}: must be a number of seconds above 0 and at most {MAX_TIMEOUT_SECONDS:.0f}"
        raise ApiError(400, message, param=TIMEOUT_HEADER)
    return seconds


class Surroundings(Protocol):
    """What `observed` needs of the server's `Context`."""

    @property
    def exposition(self) -> Exposition:
        """Where refusals are counted."""

    @property
    def budget(self) -> BodyBudget:
        """Of all bodies."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""

    @property
    def spans(self) -> SpanRecorder | None:
        """Where traces go, if they are wanted."""


def observed(server: Surroundings) -> Middleware:
    """The outermost middleware: it gives each request its `Exchange`, and says what became of it."""
    clock, spans = server.clock, server.spans

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = Exchange(_request_id(request), clock(), server.budget)
        request[EXCHANGE] = exchange
        REQUEST_ID.set(exchange.request_id)
        if (connection := connection_of(request)) is not None:
            connection.answering()
        status = CLIENT_LEFT
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            seconds = clock() - exchange.began
            exchange.hold(0)
            if connection is not None:
                connection.answered()
            if status == 429:
                server.exposition.observe(metrics.REJECTION_SECONDS, seconds)
            _log_end(request, exchange, status, seconds)
            if spans is not None and request.method == "POST":
                spans.record(request, exchange, status, seconds)

    return observe


def _request_id(request: web.Request) -> str:
    """The client's own id if it has a decent one."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if re.fullmatch(r"[\w.:@/+-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


def _log_end(request: web.Request, exchange: Exchange, status: int, seconds: float) -> None:
    """One line for a request that was served or failed; probes, and floods that were turned away, are not worth one."""
    level = logging.INFO if request.method == "POST" and status not in (401, 429) else logging.DEBUG
    if log.isEnabledFor(level):
        facts = "".join(f" {name}={value:.4g}" if isinstance(value, float) else f" {name}={value}"
                        for name, value in exchange.facts.items())  # fmt: skip
        key = f" key={exchange.key}" if exchange.key else ""
        log.log(
            level, "event=answered route=%s status=%d seconds=%.4f%s%s", route_of(request), status, seconds, key, facts
        )


def add_headers(app: web.Application, is_leaving: Callable[[], bool]) -> None:
    """What every answer of *app* says: its id, that its type is no guess, and whether it is the connection's last.

    A Service balances connections, not requests: were old ones not closed, clients that keep theirs would never meet a
    new replica. A stream that has begun is never cut for it.
    """

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        if EXCHANGE in request:  # what is no HTTP gets an answer too, but never came as far as to be one
            response.headers[REQUEST_ID_HEADER] = exchange_of(request).request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        connection = connection_of(request)
        if is_leaving() or (connection is not None and connection.is_old):
            # Headers are made before this signal: both the header and the connection's fate must be set.
            response.headers["Connection"] = "close"
            response.force_close()

    app.on_response_prepare.append(prepare)
