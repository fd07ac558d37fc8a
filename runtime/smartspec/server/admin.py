"""The admin port: load, policy, drain, and the page that shows them. It stands in no Service; the operator talks to
each replica through it."""

import ipaddress
import logging
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from smartspec.config import ConfigError, ServerConfig
from smartspec.policy.settings import decode_settings
from smartspec.scheduling.client import StalePolicyError
from smartspec.server.context import CONTEXT, Context
from smartspec.server.errors import ApiError, Handler, answer_errors, validation_error
from smartspec.server.exchange import add_headers, observed, receive
from smartspec.server.keys import KeyRing, api_key
from smartspec.server.page.routes import STATIC_PATHS, add_admin_page, refuse_other_sites
from smartspec.server.public import health, json_response, ready, require_key, show_metrics

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready"})


def admin_app(context: Context, config: ServerConfig) -> web.Application:
    """The application behind the admin port; raises ConfigError when it would be open to the network without a key."""
    if config.admin_key is None and not _is_loopback(config.admin_host):
        raise ConfigError(
            f"admin_host is {config.admin_host}, which others can reach, but no admin key is configured: "
            "set SMARTSPEC_ADMIN_KEY or --admin-key-file, or listen on 127.0.0.1"
        )
    keys = KeyRing(() if config.admin_key is None else (api_key(config.admin_key, "admin"),))
    app = web.Application(
        middlewares=[
            observed(context),
            answer_errors,
            *([refuse_other_names] if keys.is_open else []),
            refuse_other_sites,
            require_key(keys, open_paths=OPEN_PATHS | STATIC_PATHS),
        ],
        client_max_size=config.max_body_bytes,
    )
    app[CONTEXT] = context
    app.router.add_get("/load", show_load)
    app.router.add_get("/policy", show_policy)
    app.router.add_put("/policy", put_policy)
    app.router.add_get("/speculation", show_speculation)
    app.router.add_post("/drain", drain)
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    add_admin_page(app)
    add_headers(app, lambda: False)
    return app


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@web.middleware
async def refuse_other_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what was sent to a name that is not this machine's own: another site may let its name point here, and to a
    browser its pages and this server are one site then. Only a port without a key needs this."""
    try:
        name = urlsplit(f"//{request.headers.get('Host', 'localhost')}").hostname or ""
    except ValueError:
        name = ""
    if not (_is_loopback(name) or name.endswith(".localhost")):
        raise ApiError(403, "without an admin key the admin port is called localhost alone", code="other_name")
    return await handler(request)


async def show_load(request: web.Request) -> web.Response:
    """What this replica says of itself; answered while loading and draining too."""
    return json_response(request.app[CONTEXT].lifecycle.load())


async def show_policy(request: web.Request) -> web.Response:
    """The policy in force."""
    return json_response(request.app[CONTEXT].lifecycle.engine.settings())


async def put_policy(request: web.Request) -> web.Response:
    """Replace the policy between two steps; 409 when it is older than the one in force, or learned elsewhere."""
    context = request.app[CONTEXT]
    engine = context.lifecycle.engine
    try:
        settings = decode_settings(await receive(request, context.config.body_timeout_seconds))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise validation_error(error) from None
    before = engine.settings()
    try:
        in_force = engine.apply_settings(settings)
    except StalePolicyError as error:
        raise ApiError(409, str(error), param="generation", code="stale_policy") from None
    if in_force != before:
        log.info("event=policy generation=%d policy=%s", in_force.generation, in_force.policy)
    return json_response(in_force)


async def show_speculation(request: web.Request) -> web.Response:
    """What the policy chose lately and why: predicted against measured."""
    return json_response(request.app[CONTEXT].lifecycle.engine.speculation())


async def drain(request: web.Request) -> web.Response:
    """Begin to leave: unready at once, then refuse, then idle. The process stays until it is told to end."""
    lifecycle = request.app[CONTEXT].lifecycle
    task = lifecycle.start_draining()
    return json_response({"state": "draining", "drained": task.done()}, status=202)
