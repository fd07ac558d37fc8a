"""The public port: its routes, and who may use them."""

import functools

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from smartspec import __version__, metrics
from smartspec.config import ServerConfig
from smartspec.scheduling.client import EngineInfo, QueueFullError
from smartspec.server import openapi
from smartspec.server.chat import create_chat_completion
from smartspec.server.completions import create_completion
from smartspec.server.context import CONTEXT, Context, read_body
from smartspec.server.conversation import encode_chat
from smartspec.server.embeddings import create_embeddings
from smartspec.server.errors import ApiError, Handler, answer_errors
from smartspec.server.exchange import add_headers, exchange_of, observed
from smartspec.server.exposition import CONTENT_TYPE
from smartspec.server.keys import KeyRing
from smartspec.server.page.routes import PAGE_PATHS, add_public_page
from smartspec.server.parameters import beside_the_loop, check_model, check_vocabulary, encode
from smartspec.server.protocol import DetokenizeBody, TokenizeBody

OPEN_PATHS = frozenset({"/health", "/ready", "/ping", "/version", "/metrics", "/openapi.json"})
OPENAPI = web.AppKey("openapi", bytes)


def public_app(context: Context, config: ServerConfig) -> web.Application:
    """The application behind the public port."""
    open_paths = OPEN_PATHS | PAGE_PATHS if config.page else OPEN_PATHS
    app = web.Application(
        middlewares=[observed(context), answer_errors, require_key(context.keys, open_paths=open_paths)],
        client_max_size=config.max_body_bytes,
    )
    app[CONTEXT] = context
    app.router.add_post("/v1/completions", unless_full(create_completion))
    app.router.add_post("/v1/chat/completions", unless_full(create_chat_completion))
    app.router.add_post("/v1/embeddings", create_embeddings)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{model:.+}", show_model)
    app.router.add_post("/tokenize", tokenize)
    app.router.add_post("/detokenize", detokenize)
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    app.router.add_get("/ping", health)
    app.router.add_get("/version", version)
    app.router.add_get("/metrics", show_metrics)
    if config.page:
        add_public_page(app)
    app.router.add_get("/openapi.json", show_openapi)
    app[OPENAPI] = msgspec.json.encode(
        openapi.document(app, open_paths=open_paths, asks_for_key=not context.keys.is_open)
    )
    add_headers(app, lambda: context.lifecycle.is_leaving)
    return app


def require_key(keys: KeyRing, *, open_paths: frozenset[str]) -> Middleware:
    """A middleware that asks for `Authorization: Bearer KEY` everywhere but on *open_paths*; no keys: no question."""

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not keys.is_open and request.path not in open_paths:
            name = keys.name_of(request.headers.get("Authorization", ""))
            if name is None:
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, "a valid API key is required", code="invalid_api_key", headers=challenge)
            exchange = exchange_of(request)
            exchange.key = name
            exchange.tenant = name if keys.is_shared else ""
        return await handler(request)

    return check_key


def unless_full(handler: Handler) -> Handler:
    """*handler*, but not for a request that would only find the queue full: a flood is turned away unread."""

    @functools.wraps(handler)
    async def handle(request: web.Request) -> web.StreamResponse:
        context = request.app[CONTEXT]
        try:
            context.lifecycle.accepting_engine.refuse_if_full(exchange_of(request).tenant)
        except QueueFullError:
            context.exposition.count(metrics.REQUESTS_REJECTED)
            raise
        return await handler(request)

    return handle


async def list_models(request: web.Request) -> web.Response:
    """The one model there is."""
    info = request.app[CONTEXT].lifecycle.engine.info
    return json_response({"object": "list", "data": [_model(info)]})


async def show_model(request: web.Request) -> web.Response:
    """One model by its id."""
    info = request.app[CONTEXT].lifecycle.engine.info
    check_model(info, request.match_info["model"])
    return json_response(_model(info))


def _model(info: EngineInfo) -> dict[str, object]:
    """OpenAI's model object with what else a client may want to know: how it is run, and what that promises."""
    return {
        "id": info.model,
        "object": "model",
        "created": info.created,
        "owned_by": "smartspec",
        "root": info.target,
        "max_model_len": info.max_model_len,
        "draft": info.draft,
        "dtype": info.dtype,
        "device": info.device,
        "attention": info.attention,
        "invariant": info.invariant,
        "proposers": info.proposers,
    }


async def tokenize(request: web.Request) -> web.Response:
    """Token ids of a prompt or a conversation."""
    engine = request.app[CONTEXT].lifecycle.engine
    body, headers = await read_body(request, TokenizeBody)
    check_model(engine.info, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt")
    if body.messages is not None:
        tokens = await encode_chat(engine.tokenizer, body.messages)
    else:
        texts = [body.prompt or ""]
        [tokens] = await encode(engine.tokenizer, texts, add_special_tokens=body.add_special_tokens)
    answer = {"count": len(tokens), "max_model_len": engine.info.max_model_len, "tokens": tokens}
    return json_response(answer, headers=headers)


async def detokenize(request: web.Request) -> web.Response:
    """Text of token ids, special tokens included."""
    engine = request.app[CONTEXT].lifecycle.engine
    body, headers = await read_body(request, DetokenizeBody)
    check_model(engine.info, body.model)
    check_vocabulary(engine.info, body.tokens, param="tokens")
    try:
        text = await beside_the_loop(
            len(body.tokens), lambda: engine.tokenizer.decode(body.tokens, skip_special_tokens=False)
        )
    except (OverflowError, IndexError, ValueError):  # the model may know ids that the tokenizer does not
        raise ApiError(400, "tokens: an id is out of range", param="tokens") from None
    return json_response({"prompt": text}, headers=headers)


async def health(request: web.Request) -> web.Response:
    """Liveness: 200 unless the engine has failed for good, while loading too."""
    failure = request.app[CONTEXT].lifecycle.failure
    if failure is not None:
        return json_response({"status": "failed", "reason": failure}, status=503)
    return json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Readiness: 200 when new requests are welcome, else 503 and why not."""
    reason = request.app[CONTEXT].lifecycle.unready_reason
    if reason is not None:
        return json_response({"status": "unready", "reason": reason}, status=503)
    return json_response({"status": "ready"})


async def version(request: web.Request) -> web.Response:
    """The version that runs."""
    return json_response({"version": __version__})


async def show_openapi(request: web.Request) -> web.Response:
    """This description."""
    return web.Response(body=request.app[OPENAPI], content_type="application/json")


async def show_metrics(request: web.Request) -> web.Response:
    """The Prometheus exposition."""
    context = request.app[CONTEXT]
    text = context.recent_metrics.text(lambda: context.exposition.render(context.lifecycle.load()))
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


def json_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """*body* as JSON; msgspec Structs welcome."""
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json")
