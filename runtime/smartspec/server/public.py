"""The public port: its routes, who may use them, and how long a connection may live."""

import hmac
import weakref
from asyncio import BaseTransport

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from smartspec import __version__
from smartspec.config import ServerConfig
from smartspec.scheduling.client import EngineInfo
from smartspec.server.chat import create_chat_completion
from smartspec.server.completions import create_completion
from smartspec.server.context import CONTEXT, Context, read_body
from smartspec.server.conversation import encode_chat
from smartspec.server.embeddings import create_embeddings
from smartspec.server.errors import ApiError, Handler, answer_errors
from smartspec.server.exposition import CONTENT_TYPE
from smartspec.server.parameters import beside_the_loop, check_model, check_vocabulary, encode
from smartspec.server.protocol import DetokenizeBody, TokenizeBody

OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/metrics"})


def public_app(context: Context, config: ServerConfig) -> web.Application:
    """The application behind the public port."""
    app = web.Application(
        middlewares=[answer_errors, require_key(config.api_key, open_paths=OPEN_PATHS)],
        client_max_size=config.max_body_bytes,
    )
    app[CONTEXT] = context
    app.router.add_post("/v1/completions", create_completion)
    app.router.add_post("/v1/chat/completions", create_chat_completion)
    app.router.add_post("/v1/embeddings", create_embeddings)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{model:.+}", show_model)
    app.router.add_post("/tokenize", tokenize)
    app.router.add_post("/detokenize", detokenize)
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    app.router.add_get("/version", version)
    app.router.add_get("/metrics", show_metrics)
    bound_connection_age(app, context, config.max_connection_age_seconds)
    return app


def require_key(key: str | None, *, open_paths: frozenset[str]) -> Middleware:
    """A middleware that asks for `Authorization: Bearer KEY` everywhere but on *open_paths*; no key: no question."""
    expected = None if key is None else f"Bearer {key}".encode()

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        if expected is not None and request.path not in open_paths:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, expected):
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, "a valid API key is required", code="invalid_api_key", headers=challenge)
        return await handler(request)

    return check_key


def bound_connection_age(app: web.Application, context: Context, max_age_seconds: float) -> None:
    """Close connections that are old, and all of them once the server is leaving, after the answer under way.

    A Service balances connections, not requests: without this, clients that keep theirs never meet a new replica.
    """
    first_used: weakref.WeakKeyDictionary[BaseTransport, float] = weakref.WeakKeyDictionary()

    async def close_if_old(request: web.Request, response: web.StreamResponse) -> None:
        if request.transport is None:
            return
        age = context.clock() - first_used.setdefault(request.transport, context.clock())
        if age >= max_age_seconds or context.lifecycle.is_leaving:
            # Headers are made before this signal: both the header and the connection's fate must be set.
            response.headers["Connection"] = "close"
            response.force_close()

    app.on_response_prepare.append(close_if_old)


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


async def show_metrics(request: web.Request) -> web.Response:
    """The Prometheus exposition."""
    context = request.app[CONTEXT]
    text = context.exposition.render(context.lifecycle.load())
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


def json_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """*body* as JSON; msgspec Structs welcome."""
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json")
