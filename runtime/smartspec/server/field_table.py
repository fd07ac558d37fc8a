"""The tables of endpoints and of request fields in docs/api.md, from the routes and from the types that parse bodies.

`python -m smartspec.server.field_table docs/api.md` puts them there.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from smartspec.config import ServerConfig
from smartspec.server.context import Context
from smartspec.server.exposition import Exposition
from smartspec.server.lifecycle import Lifecycle
from smartspec.server.protocol import ChatBody, CompletionBody, DetokenizeBody, GenerationBody, TokenizeBody
from smartspec.server.public import OPENAPI, public_app

_BODIES = {
    "both": GenerationBody,
    "completions": CompletionBody,
    "chat": ChatBody,
    "tokenize": TokenizeBody,
    "detokenize": DetokenizeBody,
}
_HEAD = "| field | endpoint | type | default | |\n|---|---|---|---|---|\n"
_FIELDS = re.compile(r"(<!-- fields: .*? -->\n).*?(<!-- end of fields -->)", re.DOTALL)
_ENDPOINTS = re.compile(r"(<!-- endpoints -->\n).*?(<!-- end of endpoints -->)", re.DOTALL)

Schema = Mapping[str, Any]


def render_endpoints() -> str:
    """The routes of the public port in Markdown, in the words of the OpenAPI document."""
    context = Context(Lifecycle("model", lame_duck_seconds=0.0), Exposition("model"))
    document = json.loads(public_app(context, ServerConfig())[OPENAPI])
    rows = [
        f"| `{method.upper()} {path}` | {operation['summary']} |"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return "| endpoint | |\n|---|---|\n" + "\n".join(rows) + "\n"


def render() -> str:
    """The table in Markdown: what both generating endpoints have, then what one endpoint has; `a.b` is inside `a`."""
    _, components = msgspec.json.schema_components(_BODIES.values())
    common = components["GenerationBody"]["properties"]
    rows: list[str] = []
    for endpoint, kind in _BODIES.items():
        body = components[kind.__name__]
        inherits = issubclass(kind, GenerationBody) and kind is not GenerationBody
        own = {name: schema for name, schema in body["properties"].items() if not inherits or name not in common}
        rows += _rows(own, endpoint, frozenset(body.get("required", ())), components)
    return _HEAD + "\n".join(rows) + "\n"


def _rows(
    fields: Mapping[str, Schema],
    endpoint: str,
    required: frozenset[str],
    components: Mapping[str, Schema],
    above: str = "",
) -> Iterator[str]:
    for name, schema in fields.items():
        default = "required" if name in required else _default(schema)
        cells = (f"`{above}{name}`", endpoint, _type(schema, components), default, schema.get("description", ""))
        yield "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"
        inner = components.get(str(schema.get("$ref", "")).rsplit("/", 1)[-1], {})
        if "properties" in inner and not above:
            yield from _rows(inner["properties"], endpoint, frozenset(), components, f"{name}.")


def _default(schema: Schema) -> str:
    default = schema.get("default")
    return "" if default is None or default == {} or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _type(schema: Schema, components: Mapping[str, Schema]) -> str:
    """A schema in words."""
    if "anyOf" in schema:
        return " or ".join(_type(one, components) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    if "$ref" in schema:
        named = components[schema["$ref"].rsplit("/", 1)[-1]]
        return _type(named, components) if "enum" in named else "object"
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"list of {_type(schema.get('items', {}), components)}{most}"
    return kind + _bounds(schema)


def _bounds(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']:g}" + ("" if most is None else f", to {most:g}")
    if most is None or most >= 2**31 - 1:
        return "" if least is None or least < -(2**30) else f" from {least:g}"
    return f" from {least:g} to {most:g}"


def place(page: str) -> str:
    """*page* with the tables as they are now between their marks."""
    page = _ENDPOINTS.sub(lambda marks: marks[1] + render_endpoints() + marks[2], page)
    return _FIELDS.sub(lambda marks: marks[1] + render() + marks[2], page)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(place(path.read_text()))
