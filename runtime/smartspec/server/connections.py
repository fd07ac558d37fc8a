"""Connections: how long one may take over what, how many there may be, and how old one gets.

aiohttp bounds how long a connection may rest. A client that sends its head one byte a minute, or that stops reading its
answer, would still hold its connection and what stands behind it for ever: here both are bounded too.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from smartspec.server.errors import ApiError

AGE_JITTER = 0.2
"""A connection's longest age is drawn from this share below and above the setting, or all would come back at once."""
HALF_OPEN_SECONDS = 60
"""After this long without a sign from the other side's system, though one is due, a connection counts as lost."""


@dataclass(frozen=True)
class Patience:
    """Bounds of one port's connections.

    *head_seconds*: from a request's first byte to the end of its head; *send_seconds*: for a client to read anything
    once the buffers between us are full; *max_age_seconds*: after it, a connection ends with its next answer.
    """

    head_seconds: float
    send_seconds: float
    max_age_seconds: float
    max_connections: int


class Gate:
    """Makes the protocols of one port's connections, and counts them. *clock* and *dice* tell their ages."""

    def __init__(self, patience: Patience, clock: Callable[[], float], dice: random.Random) -> None:
        self.patience = patience
        self.clock = clock
        self.num_open = 0
        self._dice = dice

    def connection(self, handler: web.RequestHandler) -> "PatientProtocol":
        """What stands between a new transport and aiohttp's *handler* of it."""
        jitter = 1.0 + AGE_JITTER * self._dice.uniform(-1.0, 1.0)
        return PatientProtocol(handler, self, self.patience.max_age_seconds * jitter)


class PatientProtocol(asyncio.Protocol):
    """Passes everything on to aiohttp's *handler*, and watches the clock."""

    def __init__(self, handler: web.RequestHandler, gate: Gate, max_age_seconds: float) -> None:
        self._handler = handler
        self._gate = gate
        self._max_age_seconds = max_age_seconds
        self._began = gate.clock()
        self._is_answering = self._is_refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def is_old(self) -> bool:
        """Whether it is time for this client to look for another replica."""
        return self._gate.clock() - self._began >= self._max_age_seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody came: hand it to aiohttp, or send it away when there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._gate.num_open >= self._gate.patience.max_connections:
            self._is_refused = True
            transport.write(TOO_MANY)
            transport.close()
            return
        self._gate.num_open += 1
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes: of a head, if no request is being answered, and then the clock runs from the first of them."""
        if self._is_refused:
            return
        if self._head_timer is None and not self._is_answering:
            loop, patience = asyncio.get_running_loop(), self._gate.patience
            self._head_timer = loop.call_later(patience.head_seconds, self._transport.abort)
        self._handler.data_received(data)

    def answering(self) -> None:
        """A head is whole, and a request has begun: what comes now is its body, and the body's reader has a clock."""
        self._is_answering = True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def answered(self) -> None:
        """The next bytes are a new head."""
        self._is_answering = False

    def pause_writing(self) -> None:
        """All buffers are full: the client does not read."""
        loop, patience = asyncio.get_running_loop(), self._gate.patience
        self._send_timer = loop.call_later(patience.send_seconds, self._transport.abort)
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._send_timer is not None:
            self._send_timer.cancel()
        self._handler.resume_writing()

    def eof_received(self) -> None:
        """It will send no more, which to aiohttp means that it left."""
        if not self._is_refused:
            self._handler.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone."""
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        if not self._is_refused:
            self._gate.num_open -= 1
            self._handler.connection_lost(exc)


def connection_of(request: web.Request) -> PatientProtocol | None:
    """The connection that *request* came by, if it is still there."""
    protocol = None if request.transport is None else request.transport.get_protocol()
    return protocol if isinstance(protocol, PatientProtocol) else None


async def listen(gate: Gate, make_handler: Callable[[], web.RequestHandler], host: str, port: int) -> asyncio.Server:
    """Take connections at *host* and *port* (0: any free one); raises OSError."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: gate.connection(make_handler()), host, port, backlog=1024)
    for listening in server.sockets:
        _notice_the_dead(listening)
    return server


def _notice_the_dead(listening: socket.socket) -> None:
    """Let the system find out which peers are gone without a word; connections inherit what is set here."""
    for name, value in (
        ("TCP_USER_TIMEOUT", 1000 * HALF_OPEN_SECONDS),
        ("TCP_KEEPIDLE", HALF_OPEN_SECONDS // 2),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
    ):
        with contextlib.suppress(AttributeError, OSError):  # not every system has every one of them
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _refusal() -> bytes:
    body = ApiError(503, "there are too many connections", code="too_many_connections").body()
    head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close"
    return f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n\r\n".encode() + body


TOO_MANY = _refusal()
