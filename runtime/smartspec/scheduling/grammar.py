"""What a text must match, as the server asks for it and as the engine hands it back: the seam of structured outputs.

The library that compiles and follows grammars is known to `smartspec.execution.grammar` alone.
"""

import math
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


MAX_INTEGER = 2**53
"""In a schema: numbers are followed as doubles."""
LARGEST_BOUND = 2**63 - 1024
"""The largest double below what the grammar library takes as an integer's bound."""
MAX_PATTERN_CHARACTERS = 4096
"""Of a regular expression inside a schema."""


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or not within bounds; the message says what is wrong with it."""


def in_style(schema: Mapping[str, Any]) -> dict[str, Any]:
    """*schema* with this server's style of JSON: white space is one space, or a new line with its indentation.

    Without a bound, a model that has lost its way goes on with white space until its tokens are used up. A style that
    the schema names itself does not count: it could ask for what is no JSON at all. Bounds that no double equals become
    the next one inside. Raises GrammarError for other such numbers, and for a regular expression that is too long.
    """
    try:
        return {**_bounded(schema), "x-guidance": _JSON_STYLE}
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None


def _bounded(part: Any, key: str = "") -> Any:
    """*part* of a schema, the value of *key*."""
    if isinstance(part, Mapping):
        patterns = [part.get("pattern"), *_keys(part.get("patternProperties"))]
        if any(isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARACTERS for pattern in patterns):
            raise GrammarError(f"it has a pattern of more than {MAX_PATTERN_CHARACTERS} characters")
        literal = key in ("const", "enum")
        return {name: _bounded(value, key if literal else name) for name, value in part.items()}
    if isinstance(part, list):
        return [_bounded(value, key) for value in part]
    if isinstance(part, int) and abs(part) > MAX_INTEGER:
        if key in ("maximum", "exclusiveMaximum"):
            return _inside(min(part, LARGEST_BOUND), -math.inf)
        if key in ("minimum", "exclusiveMinimum"):
            return _inside(max(part, -LARGEST_BOUND), math.inf)
        raise GrammarError(f"it has an integer beyond {MAX_INTEGER}, which cannot be told from its neighbours")
    return part


def _inside(bound: int, inside: float) -> int:
    """The double nearest to *bound*, on the side of *inside* of it."""
    nearest = float(bound)
    is_outside = nearest > bound if inside < 0 else nearest < bound
    return int(math.nextafter(nearest, inside)) if is_outside else int(nearest)


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
