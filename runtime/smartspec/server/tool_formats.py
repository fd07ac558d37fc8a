"""How model families write tool calls: found in the chat template, followed by the parser, enforced by a grammar.

Sources: the chat templates of Hermes 2 and Qwen 2.5 (`<tool_call>`), Llama 3.1 (bare JSON with `parameters`), and
Mistral before and after its version 11 (`[TOOL_CALLS]`, then an array of calls, or a name before each one's arguments).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smartspec.scheduling.grammar import in_style


@dataclass(frozen=True)
class ToolFormat:
    """Where calls stand and what they look like.

    *mark* announces calls and *end_mark* ends one; without a mark an answer is calls if it begins with one (after
    *optional_mark*, which may be there). Written out, calls are *opening*, then each between *before* and *after* with
    *between* between two of them, and *closing*. A call is a JSON object of `name` and *arguments_key*, or, with
    *name_end*, its name, *name_end* and the object of its arguments. *id_length* is what the template accepts as an id.
    """

    name: str
    mark: str = ""
    end_mark: str = ""
    optional_mark: str = ""
    opening: str = ""
    closing: str = ""
    before: str = ""
    after: str = ""
    between: str = ""
    arguments_key: str = "arguments"
    name_end: str | None = None
    id_length: int = 24

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are markup; in some tokenizers they are special tokens."""
        return tuple(mark for mark in (self.mark, self.end_mark, self.optional_mark, self.name_end or "") if mark)


HERMES = ToolFormat(
    "hermes", "<tool_call>", "</tool_call>", before="<tool_call>\n", after="\n</tool_call>", between="\n"
)
LLAMA_3 = ToolFormat("llama3_json", optional_mark="<|python_tag|>", between="; ", arguments_key="parameters")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", opening="[TOOL_CALLS][", closing="]", between=", ", id_length=9)
MISTRAL_SPACED = ToolFormat("mistral", "[TOOL_CALLS]", opening="[TOOL_CALLS] [", closing="]", between=", ", id_length=9)
MISTRAL_NAMES = ToolFormat("mistral", "[TOOL_CALLS]", before="[TOOL_CALLS]", name_end="[ARGS]", id_length=9)
GENERIC = ToolFormat("json", between="\n")


def format_of(chat_template: str | None) -> ToolFormat:
    """The format that *chat_template* teaches its model; generic JSON where it knows no tools, or in another format."""
    template = chat_template or ""
    if "tools" not in template:
        return GENERIC
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" in template:
            return MISTRAL_NAMES
        return MISTRAL_SPACED if "[TOOL_CALLS] [" in template else MISTRAL
    if "<tool_call>" in template:
        # Qwen 3 Coder and GLM put XML between the same marks.
        return GENERIC if "<function=" in template or "<arg_key>" in template else HERMES
    if "<|python_tag|>" in template or "<|start_header_id|>" in template:
        return LLAMA_3
    return GENERIC


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a model is told of tools whose template knows none, or writes calls in a format unknown here."""
    lines = "\n".join(json.dumps(tool["function"]) for tool in tools)
    return (
        f"You may call these functions:\n{lines}\n"
        'To call one, answer with nothing but JSON: {"name": <function name>, "arguments": <object>}, one call a line.'
    )


def calls_grammar(
    tool_format: ToolFormat,
    functions: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    parallel: bool,
    token_of: Callable[[str], int | None],
    instead: Literal["nothing", "text"] | Mapping[str, Any] = "nothing",
) -> str:
    """A grammar (Lark, llguidance's dialect) of calls of *functions*, names with their parameters' schemas.

    *parallel* allows several calls. *instead* is what may stand there if no function is called: nothing, so that one
    must be; any text, with calls in it where the format has them there; or JSON that is valid by a schema. *token_of*
    gives the token of a mark that is a single one: the model was taught that token, and no other spelling of it.
    """

    def terms(text: str) -> str:
        return _terms(text, tool_format.marks, token_of)

    rules = []
    for index, (name, schema) in enumerate(functions):
        if tool_format.name_end is None:
            head, tail = f'{{"name": {json.dumps(name)}, "{tool_format.arguments_key}": ', "}"
        else:
            head, tail = name + tool_format.name_end, ""
        rules.append(f"call_{index}: {terms(head)} arguments_{index} {terms(tail)}")
        rules.append(f"arguments_{index}: %json {json.dumps(in_style(schema))}")
    which = " | ".join(f"call_{index}" for index in range(len(functions)))
    opening, before, mark = tool_format.opening, tool_format.before, tool_format.mark
    if instead == "text" and mark:
        # The mark is what turns text into a call: it is taken out of the call and put behind the text.
        rules += _text_before(mark, token_of(mark))
        opening, before = opening.removeprefix(mark), before.removeprefix(mark)
    more = f"({terms(tool_format.between)} call)*" if parallel else ""
    calls = f"{terms(opening)} call {more} {terms(tool_format.closing)}"
    if instead == "nothing":
        start = "calls"
    elif instead == "text" and not mark:
        start = "calls | TEXT"
        rules.append(r"TEXT: /[^{\s](.|\n)*/")
    elif instead == "text":
        # Without an opening of their own, calls begin with a mark each, and text may come between them.
        start = f"(marked call){'*' if parallel else '?'} text" if not tool_format.opening else "text | marked calls"
    else:
        start = "calls | answer"
        rules.append(f"answer: %json {json.dumps(in_style(instead))}")
    call = f"{terms(before)} ({which}) {terms(tool_format.after)}"
    return "\n".join((f"start: {start}", f"calls: {calls}", f"call: {call}", *rules))


def _text_before(mark: str, token: int | None) -> list[str]:
    """Rules for `text` without *mark*, and for text up to it, `marked`."""
    if token is not None:
        return [f"text: <[^{token}]>*", f"marked: text <[{token}]>"]
    return ["text: TEXT", r"TEXT: /(.|\n)*/", f"marked[lazy]: TEXT {json.dumps(mark)}"]


def _terms(text: str, marks: Sequence[str], token_of: Callable[[str], int | None]) -> str:
    """*text* as a sequence of Lark terms: marks that are one token by its number, all else literally."""
    for mark in marks:
        before, found, after = text.partition(mark)
        if found and (token := token_of(mark)) is not None:
            parts = (_terms(before, marks, token_of), f"<[{token}]>", _terms(after, marks, token_of))
            return " ".join(part for part in parts if part)
    return json.dumps(text, ensure_ascii=False) if text else ""
