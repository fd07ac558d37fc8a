"""`POST /v1/embeddings`: not served, and why."""

from aiohttp import web

from smartspec.server.context import CONTEXT
from smartspec.server.errors import ApiError


async def create_embeddings(request: web.Request) -> web.StreamResponse:
    """Refuse, with the reason.

    A causal language model has hidden states of tokens, not an embedding of a text: which states to take, and how to
    pool and scale them, is a choice that a checkpoint must have been trained for. To guess it would answer with vectors
    that look right.
    """
    info = request.app[CONTEXT].lifecycle.engine.info
    raise ApiError(
        400,
        f"model: {info.model} is served as a causal language model, which generates text and has no embedding of one; "
        "serve an embedding model with a server made for those",
        param="model",
        code="unsupported_endpoint",
    )
