"""`GET /openapi.json`: the endpoints of the public port and their request bodies, from the types that parse them."""

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from smartspec import __version__
from smartspec.server.errors import TYPES
from smartspec.server.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

BODIES: Mapping[str, type[Struct]] = {
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
"""What each route that takes a body takes."""

STREAMED = frozenset({"/v1/completions", "/v1/chat/completions"})
HIDDEN = ("/page/", "/history")
"""Files of the page, and what feeds it: no part of the API."""

_REF = "#/components/schemas/{name}"


def document(app: web.Application, *, open_paths: frozenset[str], asks_for_key: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 description of *app*'s routes."""
    schemas, components = msgspec.json.schema_components(BODIES.values(), ref_template=_REF)
    bodies = dict(zip(BODIES, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in app.router.routes():
        path = route.resource.canonical if route.resource is not None else ""
        if route.method in ("GET", "POST") and path != "/" and not path.startswith(HIDDEN):
            operation = _operation(path, inspect.getdoc(route.handler) or "", bodies.get(path))
            if asks_for_key and path not in open_paths:
                operation["security"] = [{"key": []}]
            paths.setdefault(path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SmartSpec",
            "version": __version__,
            "description": "An LLM server that decides, per request and per step, how much to speculate.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _error()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, text: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    summary, _, description = text.partition("\n")
    operation: dict[str, Any] = {"summary": summary, "responses": _responses(path)}
    if description.strip():
        operation["description"] = description.strip()
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _responses(path: str) -> dict[str, Any]:
    kinds: dict[str, Any] = {"application/json": {}}
    if path == "/metrics":
        kinds = {"text/plain": {}}
    elif path in STREAMED:
        kinds["text/event-stream"] = {}
    error = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
    return {
        "200": {"description": "The answer.", "content": kinds},
        "default": {"description": "OpenAI's error object.", "content": error},
    }


def _error() -> dict[str, Any]:
    """The schema of every refusal."""
    optional = {"type": ["string", "null"]}
    fields = {
        "message": {"type": "string"},
        "type": {"enum": ["invalid_request_error", *TYPES.values()]},
        "param": optional,
        "code": optional,
    }
    error = {"type": "object", "required": list(fields), "properties": fields}
    return {"type": "object", "required": ["error"], "properties": {"error": error}}
