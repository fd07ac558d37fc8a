"""A small streaming front before replicas on one machine: what a Service is to pods, but it balances requests.

A Service balances connections, and so does SO_REUSEPORT: a keep-alive client stays where it first landed, and never
meets a new replica. Here every request goes to the replica with the fewest outstanding ones.
"""

import asyncio
import itertools
import json
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import (
    ClientConnectionResetError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
    web,
)
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

logger = logging.getLogger(__name__)

REPLICA_HEADER = "X-SmartSpec-Replica"
"""Names the replica that answered, in every answer that came from one."""

MAX_BODY_BYTES = 16 * 1024 * 1024
"""More than the runtime accepts, so that it is the runtime's own answer that a client with too much to say reads."""

CONNECT_TIMEOUT_SECONDS = 2.0
RETRY_AFTER_SECONDS = 1
MAX_DISCONNECTS = 2

# A proxy must not forward what describes one connection only (source: RFC 9110, section 7.6.1).
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
# aiohttp writes these two itself, and the front has already consumed `Expect: 100-continue` with the body.
REQUEST_ONLY = frozenset({"host", "content-length", "expect"})


@dataclass(eq=False, slots=True)
class Backend:
    """One replica as the front sees it: where it is, and what it has in hand.

    `turn` orders replicas that have equally many outstanding requests: the one picked longest ago is next.
    """

    name: str
    url: URL
    outstanding: int = 0
    turn: int = 0


class Front:
    """Routes each request to the ready replica with the fewest outstanding ones; an async context manager.

    Who is ready is told by `route`, as a whole, whenever it changes. A replica that is no longer named gets nothing
    new and finishes what it has. An answer is passed through as it comes: status, headers and every chunk of a stream.
    """

    def __init__(self) -> None:
        self._backends: dict[str, Backend] = {}
        self._turns = itertools.count(1)
        self._session: ClientSession | None = None
        self.requests_total = 0
        self.retries_total = 0
        self.refused_total = 0

    async def __aenter__(self) -> Self:
        self._session = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=15.0),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def outstanding(self) -> dict[str, int]:
        """Requests in hand by replica, for those that receive new ones."""
        return {backend.name: backend.outstanding for backend in self._backends.values()}

    def route(self, endpoints: Mapping[str, URL]) -> None:
        """From now on send requests to *endpoints*, public URLs by replica name, and to no other."""
        routed = {}
        for name, url in endpoints.items():
            known = self._backends.get(name)
            # A replica restarted in place has a new port and nothing in hand: it is a new backend under an old name.
            routed[name] = known if known is not None and known.url == url else Backend(name, url)
        self._backends = routed

    def application(self) -> web.Application:
        """The aiohttp application; run it with `handler_cancellation=True`, or lost clients keep replicas busy."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one request from the ready replicas, asking another when one refuses before it has begun to answer.

        Nothing is lost by asking again: no text was sent, and generating has no other effect. That covers a refused
        connection, the 503 of a replica that has just begun to drain, and a connection closed for its age just when
        it was reused. The last is not distinguishable from a request that kills its replica, hence a bound on those.
        A 429 is an answer and is passed on.
        """
        self.requests_total += 1
        body = await request.read()
        headers = _end_to_end(request.headers, REQUEST_ONLY)
        refused: set[str] = set()
        disconnects = 0
        while disconnects < MAX_DISCONNECTS and (backend := self._pick(refused)) is not None:
            backend.turn = next(self._turns)
            backend.outstanding += 1
            try:
                async with self._ask(backend, request, headers, body) as answer:
                    if answer.status != 503 or self._pick(refused | {backend.name}) is None:
                        return await _stream(request, answer, backend.name)
                refused.add(backend.name)
            except (ClientConnectorError, ConnectionTimeoutError) as error:
                logger.info("replica %s cannot be reached: %s", backend.name, error)
                refused.add(backend.name)
            except ClientError as error:
                logger.info("replica %s broke off before its answer: %s", backend.name, error or type(error).__name__)
                disconnects += 1
            finally:
                backend.outstanding -= 1
            self.retries_total += 1
        self.refused_total += 1
        return _refusal("no replica is ready" if not disconnects else "the replica broke off before its answer")

    def _pick(self, refused: set[str]) -> Backend | None:
        candidates = [backend for backend in self._backends.values() if backend.name not in refused]
        return min(candidates, key=lambda backend: (backend.outstanding, backend.turn), default=None)

    def _ask(
        self, backend: Backend, request: web.Request, headers: CIMultiDict[str], body: bytes
    ) -> AbstractAsyncContextManager[ClientResponse]:
        assert self._session is not None, "the front must be entered before it serves"
        url = URL(f"{backend.url.origin()}{request.raw_path}", encoded=True)
        return self._session.request(request.method, url, headers=headers, data=body or None, allow_redirects=False)


async def _stream(request: web.Request, answer: ClientResponse, replica: str) -> web.StreamResponse:
    """Pass *answer* on, chunk by chunk as they come."""
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    response.headers.extend(_end_to_end(answer.headers, frozenset()))
    response.headers[REPLICA_HEADER] = replica
    try:
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    except ClientConnectionResetError:
        logger.debug("a client left while replica %s answered", replica)
    except ClientError as error:
        # Too late for another replica. Cutting the connection is the only honest end: a clean one would tell the
        # client that this was the whole text.
        logger.warning("the answer of replica %s broke off: %s", replica, error or type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    return response


def _end_to_end(headers: CIMultiDictProxy[str], also_dropped: frozenset[str]) -> CIMultiDict[str]:
    """*headers* without those that concern one connection only."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    dropped = HOP_BY_HOP | also_dropped | named
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def _refusal(message: str) -> web.Response:
    error = {"message": message, "type": "service_unavailable", "param": None, "code": 503}
    return web.Response(
        status=503,
        text=json.dumps({"error": error}),
        content_type="application/json",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


async def serve(front: Front, host: str, port: int) -> web.AppRunner:
    """Listen on *host*:*port* (0: any free one, see `runner.addresses`); `await runner.cleanup()` ends it.

    Raises OSError when the address is taken.
    """
    runner = web.AppRunner(
        front.application(), handler_cancellation=True, access_log=None, keepalive_timeout=75.0, shutdown_timeout=5.0
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


async def is_ready(session: ClientSession, url: URL, timeout_seconds: float = 1.0) -> bool:
    """Whether the replica at *url* answers `/ready` with 200 in time."""
    try:
        async with asyncio.timeout(timeout_seconds), session.get(url / "ready") as answer:
            return answer.status == 200
    except (ClientError, TimeoutError):
        return False
