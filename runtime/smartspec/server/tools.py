"""One chat request's tools: told to the model, enforced where they must be called, and read out of its answer."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from smartspec.scheduling.client import Tokenizer
from smartspec.scheduling.grammar import GrammarError, GrammarSpec
from smartspec.server.errors import ApiError
from smartspec.server.protocol import ChatBody
from smartspec.server.structured_outputs import form_of
from smartspec.server.tool_formats import GENERIC, ToolFormat, calls_grammar, format_of, instructions
from smartspec.server.tool_parser import ToolParser
from smartspec.server.tool_protocol import NamedToolChoice, Tool

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolPlan:
    """What is to be done about a request's tools.

    *told* go to a template that knows tools; *instructions* to one that does not. *form* is the grammar that the answer
    must follow, if any, with the field to blame for it. *shows_marks* says that calls cannot be told from content
    unless special tokens are shown.
    """

    tool_format: ToolFormat
    names: frozenset[str]
    parallel: bool
    told: tuple[Mapping[str, Any], ...]
    instructions: str
    form: tuple[str, GrammarSpec] | None
    shows_marks: bool

    def parser(self) -> ToolParser:
        """A reader for one answer."""
        return ToolParser(self.tool_format, self.names, self._new_id, parallel=self.parallel)

    def _new_id(self) -> str:
        # Mistral's templates take ids of nine letters and digits, and no others.
        length = self.tool_format.id_length
        return secrets.token_hex(length)[:length] if length < 24 else f"call_{secrets.token_hex(12)}"


def plan_tools(body: ChatBody, tokenizer: Tokenizer) -> ToolPlan | None:
    """What to do about the tools of *body*; None without any, or when none may be called: the model is not told then.

    Raises ApiError for a choice that makes no sense.
    """
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
        return None
    names = [tool.function.name for tool in body.tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            param = f"tools[{index}].function.name"
            raise ApiError(400, f"{param}: there are two tools named {name!r}", param=param)
    if choice == "none":
        return None
    if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
        message = f"tool_choice.function.name: there is no tool named {choice.function.name!r}"
        raise ApiError(400, message, param="tool_choice.function.name")
    tool_format = format_of(tokenizer.chat_template)
    told = tuple(msgspec.to_builtins(tool) for tool in body.tools)
    # A template whose format is not known here is not told either: the model would answer in what nobody can read.
    knows_tools = tool_format != GENERIC
    return ToolPlan(
        tool_format=tool_format,
        names=frozenset(names),
        parallel=body.parallel_tool_calls,
        told=told if knows_tools else (),
        instructions="" if knows_tools else instructions(told),
        form=_form(body, tool_format, tokenizer),
        shows_marks=any(_is_hidden(mark, tokenizer) for mark in tool_format.marks),
    )


def _form(body: ChatBody, tool_format: ToolFormat, tokenizer: Tokenizer) -> tuple[str, GrammarSpec] | None:
    """The grammar of an answer that may call tools: none where it may say what it likes, and call as it likes."""
    form, choice = form_of(body), body.tool_choice
    instead: Literal["nothing", "text"] | Mapping[str, Any] = "nothing"
    if choice in (None, "auto"):
        if form is None and not any(tool.function.strict for tool in body.tools):
            return None
        instead = "text" if form is None else _schema_of(*form)
    tools = body.tools
    if isinstance(choice, NamedToolChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    param = "tools" if form is None else form[0]
    try:
        grammar = calls_grammar(
            tool_format,
            [(tool.function.name, _parameters(tool)) for tool in tools],
            parallel=body.parallel_tool_calls and not isinstance(choice, NamedToolChoice),
            token_of=tokenizer.token_of,
            instead=instead,
        )
    except GrammarError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_grammar") from None
    return param, GrammarSpec("calls", grammar)


def _schema_of(param: str, spec: GrammarSpec) -> Mapping[str, Any]:
    """The schema that an answer must be valid by, unless it calls tools."""
    if spec.kind != "json_schema":
        raise ApiError(400, f"{param} cannot be combined with tools, unless tool_choice is none", param=param)
    try:
        schema = json.loads(spec.source)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_grammar") from None
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise ApiError(400, f"{param}: a schema is an object", param=param, code="invalid_grammar")
    return schema


def _parameters(tool: Tool) -> Mapping[str, Any]:
    return NO_PARAMETERS if tool.function.parameters is None else tool.function.parameters


def _is_hidden(mark: str, tokenizer: Tokenizer) -> bool:
    token = tokenizer.token_of(mark)
    return token is not None and not tokenizer.decode([token])
