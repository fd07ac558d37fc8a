"""The form an answer must have: `response_format`, vLLM's `structured_outputs`, and the `guided_*` names before it."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from smartspec.scheduling.client import EngineClient
from smartspec.scheduling.grammar import Grammar, GrammarError, GrammarKind, GrammarSpec
from smartspec.server.errors import ApiError

Schema = dict[str, Any] | bool
Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=4096)]

ANY_OBJECT = b'{"type":"object"}'


class JsonSchemaFormat(Struct, frozen=True):
    """A schema by name. It is always kept to, `strict` or not."""

    name: Annotated[str, Meta(max_length=256)] = ""
    schema: Schema = True
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """OpenAI's way: any text, any JSON object, or JSON that is valid by a schema."""

    type: Annotated[Literal["text", "json_object", "json_schema"], Meta(description="Which form.")] = "text"
    json_schema: Annotated[
        JsonSchemaFormat | None, Meta(description="With type json_schema: name, schema, strict (always so).")
    ] = None


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's way, one of: a JSON schema (as an object or as a text), any JSON object, a regular expression, texts to
    choose from, or a grammar in Lark's notation or in GBNF."""

    json: Annotated[str | Schema | None, Meta(description="JSON that is valid by this schema.")] = None
    json_object: Annotated[bool | None, Meta(description="Any JSON object.")] = None
    regex: Annotated[str | None, Meta(description="A text that this regular expression matches whole.")] = None
    choice: Annotated[Choices | None, Meta(description="One of these texts.")] = None
    grammar: Annotated[str | None, Meta(description="A text of this grammar, in Lark's notation or GBNF.")] = None


class StructuredFields(Struct, kw_only=True):
    """The fields of a body that give its answer a form; at most one of them may."""

    response_format: Annotated[
        ResponseFormat, Meta(description="text, json_object, or json_schema: the answer is valid JSON by that schema.")
    ] = ResponseFormat()
    structured_outputs: Annotated[
        StructuredOutputs, Meta(description="vLLM's: one of json, json_object, regex, choice and grammar.")
    ] = StructuredOutputs()
    guided_json: Annotated[str | Schema | None, Meta(description="structured_outputs.json by an older name.")] = None
    guided_regex: Annotated[str | None, Meta(description="structured_outputs.regex by an older name.")] = None
    guided_choice: Annotated[Choices | None, Meta(description="structured_outputs.choice by an older name.")] = None
    guided_grammar: Annotated[str | None, Meta(description="structured_outputs.grammar by an older name.")] = None


def form_of(body: StructuredFields) -> tuple[str, GrammarSpec] | None:
    """The field that gives the answer a form, and that form. Raises ApiError when there are several."""
    forms = list(_forms(body))
    if len(forms) > 1:
        names = " and ".join(param for param, _ in forms)
        raise ApiError(400, f"{names} exclude each other: an answer has one form", param=forms[1][0])
    return forms[0] if forms else None


def _forms(body: StructuredFields) -> Iterator[tuple[str, GrammarSpec]]:
    wanted, schema_format = body.response_format.type, body.response_format.json_schema
    if wanted == "json_schema":
        if schema_format is None:
            param = "response_format.json_schema"
            raise ApiError(400, f"{param} is required when response_format.type is json_schema", param=param)
        yield "response_format.json_schema.schema", _json(schema_format.schema)
    elif wanted == "json_object":
        yield "response_format", _json(ANY_OBJECT)
    outputs = body.structured_outputs
    if outputs.json_object:
        yield "structured_outputs.json_object", _json(ANY_OBJECT)
    for name, where in (("json", outputs.json), ("guided_json", body.guided_json)):
        if where is not None:
            yield _param(name), _json(where.encode("utf-8", "surrogatepass") if isinstance(where, str) else where)
    sources: tuple[tuple[str, GrammarKind, str | None], ...] = (
        ("regex", "regex", outputs.regex),
        ("guided_regex", "regex", body.guided_regex),
        ("grammar", "grammar", outputs.grammar),
        ("guided_grammar", "grammar", body.guided_grammar),
    )
    for name, kind, source in sources:
        if source is not None:
            yield _param(name), GrammarSpec(kind, source)
    for name, choices in (("choice", outputs.choice), ("guided_choice", body.guided_choice)):
        if choices is not None:
            yield _param(name), GrammarSpec("choice", msgspec.json.encode(choices).decode())


def _param(name: str) -> str:
    return name if name.startswith("guided_") else f"structured_outputs.{name}"


def _json(schema: bytes | Schema) -> GrammarSpec:
    source = schema if isinstance(schema, bytes) else msgspec.json.encode(schema)
    return GrammarSpec("json_schema", source.decode("utf-8", "replace"))


async def compiled(engine: EngineClient, form: tuple[str, GrammarSpec] | None) -> Grammar | None:
    """The grammar of *form*, a field and what it asks for; raises ApiError naming the field when it cannot be had."""
    if form is None:
        return None
    param, spec = form
    try:
        return await engine.compile_grammar(spec)
    except GrammarError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_grammar") from None
