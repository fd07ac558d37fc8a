"""The page's routes: static files, the history they show, and who may ask for them."""

import asyncio
import contextlib
import hashlib
import mimetypes
from collections.abc import AsyncIterator, Mapping
from importlib.resources import files
from typing import Final, Literal

import msgspec
from aiohttp import web

from smartspec import __version__
from smartspec.scheduling.client import NotAcceptingError
from smartspec.server.chat import create_chat_completion
from smartspec.server.completions import create_completion
from smartspec.server.context import CONTEXT
from smartspec.server.errors import ApiError, Handler
from smartspec.server.page.history import INTERVAL_SECONDS, WINDOW_SECONDS

STATIC = files("smartspec.server.page") / "static"
NAMES = (
    "page.css", "page.js", "charts.js", "words.js", "prompt.js", "icon.svg",
    "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css",
)  # fmt: skip
PAGE_PATHS: Final = frozenset({"/", "/history", *(f"/page/{name}" for name in NAMES)})
"""What the page consists of and is fed with."""
STATIC_PATHS: Final = PAGE_PATHS - {"/history"}
"""The part of it that is the same on every server."""

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
CONTENT_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}

Port = Literal["admin", "public"]
PORT = web.AppKey("port", str)


def add_admin_page(app: web.Application) -> None:
    """The page on the admin port, with completions beside it: one origin, so that a prompt needs no CORS."""
    _add_page(app, "admin")
    app.router.add_post("/v1/completions", create_completion)
    app.router.add_post("/v1/chat/completions", create_chat_completion)
    app.cleanup_ctx.append(_keep_history)


def add_public_page(app: web.Application) -> None:
    """The page on the public port: counts and times that `/metrics` tells there too, and nothing of the admin port."""
    _add_page(app, "public")


def _add_page(app: web.Application, port: Port) -> None:
    app[PORT] = port
    app.router.add_get("/", _file("index.html"))
    for name in NAMES:
        app.router.add_get(f"/page/{name}", _file(name))
    app.router.add_get("/history", show_history)


def _file(name: str) -> Handler:
    """A handler that answers with a file of the page, read once."""
    content = STATIC.joinpath(name).read_bytes()
    etag = hashlib.sha256(content).hexdigest()[:32]
    content_type = CONTENT_TYPES.get(f".{name.rpartition('.')[2]}") or mimetypes.guess_type(name)[0]

    async def send(request: web.Request) -> web.StreamResponse:
        headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache"}
        if any(known.value == etag for known in request.if_none_match or ()):
            response = web.Response(status=304, headers=headers)
        else:
            response = web.Response(body=content, content_type=content_type, charset="utf-8", headers=headers)
        response.etag = etag
        return response

    return send


async def show_history(request: web.Request) -> web.Response:
    """The last ten minutes in rows of two seconds; `?after=N` only those after row N."""
    context, port = request.app[CONTEXT], request.app[PORT]
    after = request.query.get("after", "-1")
    try:
        rows = context.history.encoded_rows(int(after[:20]))
    except ValueError:
        raise ApiError(400, "after: must be the index of a row", param="after") from None
    load = context.lifecycle.load()
    server: dict[str, object] = {"model": load.model, "state": load.state, "version": __version__}
    if port == "admin":
        with contextlib.suppress(NotAcceptingError):  # there is no engine yet, or never will be
            info, settings = context.lifecycle.engine.info, context.lifecycle.engine.settings()
            server |= {
                "draft": info.draft,
                "device": info.device,
                "dtype": info.dtype,
                "policy": settings.policy,
                "generation": settings.generation,
                "max_speculative_tokens": settings.max_speculative_tokens,
                "max_num_seqs": load.max_num_seqs,
                "kv_cache_tokens": load.kv_cache_tokens,
            }
    answer = {
        "port": port,
        "started": context.history.started,
        "interval_seconds": INTERVAL_SECONDS,
        "window_seconds": WINDOW_SECONDS,
        "server": server,
        "rows": rows,
    }
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json", headers=headers)


@web.middleware
async def refuse_other_sites(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a browser sends on behalf of another site: without a key, any page a person has open could drain the
    server on their machine. Programs other than browsers send no such header."""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        # A link to the page itself is welcome: following it changes nothing, and the other site sees nothing of it.
        is_link = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        if not is_link:
            raise ApiError(403, "requests of other sites are refused on the admin port", code="cross_site")
    return await handler(request)


async def _keep_history(app: web.Application) -> AsyncIterator[None]:
    context = app[CONTEXT]
    task = asyncio.create_task(context.history.keep(context.lifecycle.load), name="history")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
