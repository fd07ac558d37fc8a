"""Tools in a request's body: what may be called, what must be, and calls of earlier turns."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(Struct, frozen=True, omit_defaults=True):
    """A function that may be called; without `parameters` it takes none. With `strict`, arguments are always valid."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Struct, frozen=True):
    """A function by its name."""

    name: FunctionName


class NamedToolChoice(Struct, frozen=True):
    """This function and no other."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class CalledFunction(Struct, frozen=True):
    """What was called, and its arguments as JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(Struct, frozen=True):
    """A call of an earlier turn."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"
