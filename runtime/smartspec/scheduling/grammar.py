"""What a text must match, as the server asks for it and as the engine hands it back: the seam of structured outputs.

The library that compiles and follows grammars is known to `smartspec.execution.grammar` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from smartspec.scheduling.request import LogitRule

GrammarKind = Literal["json_schema", "regex", "choice", "grammar", "calls"]


_JSON_STYLE = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": r"\x20|\x0A[\x20\x09]{0,64}",
    "lenient": False,
    "coerce_one_of": False,
}


MAX_PATTERN_CHARACTERS = 4096
"""Of a regular expression inside a schema."""


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or not within bounds; the message says what is wrong with it."""


def in_style(schema: Mapping[str, Any]) -> dict[str, Any]:
    """*schema* with this server's style of JSON: white space is one space, or a new line with its indentation.

    Without a bound, a model that has lost its way goes on with white space until its tokens are used up. A style that
    the schema names itself does not count: it could ask for what is no JSON at all. Raises GrammarError for a regular
    expression that is too long.
    """
    _check_patterns(schema)
    return {**schema, "x-guidance": _JSON_STYLE}


def _check_patterns(schema: Mapping[str, Any]) -> None:
    rest: list[Any] = [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, Mapping):
            patterns = [part.get("pattern"), *_keys(part.get("patternProperties"))]
            if any(isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARACTERS for pattern in patterns):
                raise GrammarError(f"it has a pattern of more than {MAX_PATTERN_CHARACTERS} characters")
            rest += part.values()
        elif isinstance(part, list):
            rest += part


def _keys(part: Any) -> list[Any]:
    return list(part) if isinstance(part, Mapping) else []


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A grammar by its source: a JSON schema, a regular expression, a JSON array of texts to choose from, or a grammar
    in Lark's notation (llguidance's dialect) or llama.cpp's GBNF; "calls" is one that this server wrote around schemas
    of others. Equal specs are compiled once."""

    kind: GrammarKind
    source: str


class Grammar(Protocol):
    """A compiled grammar; any number of texts can follow it at once."""

    def rule(self) -> LogitRule:
        """A rule for one new text."""
