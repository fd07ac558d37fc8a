"""The grammars of tool calls let through what a family writes, and nothing else that looks like a call."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from smartspec.execution.grammar import GrammarCompiler
from smartspec.execution.tokenizer import HuggingFaceTokenizer
from smartspec.scheduling.grammar import GrammarSpec
from smartspec.scheduling.request import RuledText, SamplingParams
from smartspec.server.tool_formats import (
    GENERIC,
    HERMES,
    LLAMA_3,
    MISTRAL,
    MISTRAL_NAMES,
    MISTRAL_SPACED,
    ToolFormat,
    calls_grammar,
    format_of,
)
from tiny import EOS, byte_tokenizer

ADD: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/number"}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"number": {"type": "integer"}},
}
NOW: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
Instead = Literal["nothing", "text"] | Mapping[str, Any]

ONE = {
    "hermes": (HERMES, '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'),
    "llama": (LLAMA_3, '{"name": "add", "parameters": {"x": 1}}'),
    "mistral": (MISTRAL, '[TOOL_CALLS][{"name": "add", "arguments": {"x": 1}}]'),
    "mistral names": (MISTRAL_NAMES, '[TOOL_CALLS]add[ARGS]{"x": 1}'),
    "generic": (GENERIC, '{"name": "add", "arguments": {"x": 1}}'),
}
TWO = {
    "hermes": f'{ONE["hermes"][1]}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>',
    "llama": f'{ONE["llama"][1]}; {{"name": "now", "parameters": {{}}}}',
    "mistral": ONE["mistral"][1][:-1] + ', {"name": "now", "arguments": {}}]',
    "mistral names": f"{ONE['mistral names'][1]}[TOOL_CALLS]now[ARGS]{{}}",
    "generic": f'{ONE["generic"][1]}\n{{"name": "now", "arguments": {{}}}}',
}


class Texts:
    """The texts of a grammar of calls, over a tokenizer in which marks are tokens of their own, or plain text."""

    def __init__(self, tool_format: ToolFormat, instead: Instead, *, marks_are_tokens: bool, parallel: bool = True):
        self.words = byte_tokenizer(384)
        if marks_are_tokens:
            self.words.add_special_tokens({"additional_special_tokens": list(tool_format.marks)})
        self.end = self.words.convert_tokens_to_ids(EOS)
        source = calls_grammar(
            tool_format, [("add", ADD), ("now", NOW)], parallel=parallel, instead=instead,
            token_of=HuggingFaceTokenizer(self.words).token_of,
        )  # fmt: skip
        compiler = GrammarCompiler(self.words, vocab_size=len(self.words), eos_token_ids=frozenset({self.end}))
        self.grammar = compiler.compile(GrammarSpec("calls", source))

    def has(self, text: str) -> bool:
        """Whether *text* is one of them, to its end."""
        tokens = [*self.words.encode(text), self.end]
        return self.grammar.rule().permits(RuledText(SamplingParams(), [0], 1), tokens) == len(tokens)

    def begins(self, text: str) -> bool:
        """Whether one of them begins with *text*."""
        tokens = self.words.encode(text)
        return self.grammar.rule().permits(RuledText(SamplingParams(), [0], 1), tokens) == len(tokens)


@pytest.mark.parametrize("marks_are_tokens", [False, True])
@pytest.mark.parametrize("family", ONE)
def test_required_calls_are_calls(family: str, marks_are_tokens: bool) -> None:
    """One call, or two where that is allowed; no text, no other name, no other arguments."""
    tool_format, one = ONE[family]
    texts = Texts(tool_format, "nothing", marks_are_tokens=marks_are_tokens)
    single = Texts(tool_format, "nothing", marks_are_tokens=marks_are_tokens, parallel=False)
    assert texts.has(one)
    assert texts.has(TWO[family])
    assert single.has(one)
    assert not single.has(TWO[family])
    for wrong in ("", "hello", one.replace("add", "sub"), one.replace('"x": 1', '"x": "1"'), one.replace('"x": 1', "")):
        assert not texts.has(wrong), wrong


@pytest.mark.parametrize("marks_are_tokens", [False, True])
@pytest.mark.parametrize("family", ONE)
def test_text_may_stand_instead_and_calls_stay_calls(family: str, marks_are_tokens: bool) -> None:
    """Any text, with calls where the format has them; but what begins as a call is one to its end."""
    tool_format, one = ONE[family]
    texts = Texts(tool_format, "text", marks_are_tokens=marks_are_tokens)
    assert texts.has("Hello, <b>you</b>: é\n{1}")
    assert texts.has(one)
    assert texts.has(TWO[family])
    if tool_format.mark:
        assert texts.has("Let me see.\n" + one)
    for wrong in (one.replace("add", "sub"), one.replace('"x": 1', '"x": "1"')):
        assert not texts.begins(wrong), wrong
    if tool_format is HERMES:
        assert texts.has(f"a {one} b {one} c")


def test_a_form_of_the_answer_may_stand_instead() -> None:
    """Either calls, or JSON by the schema of the answer, its own references included."""
    answer = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"const": 7}}}}
    for tool_format, one in ONE.values():
        texts = Texts(tool_format, answer, marks_are_tokens=False)
        assert texts.has(one)
        assert texts.has("[7, 7]")
        assert not texts.has("[8]")
        assert not texts.has("hello")


def test_a_schema_s_own_style_is_left_out() -> None:
    """The library's switches inside parameters do nothing."""
    style = {"x-guidance": {"key_separator": "=", "lenient": True}}
    source = calls_grammar(GENERIC, [("add", ADD | style)], parallel=False, token_of=lambda _: None)
    assert json.dumps("=") not in source


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [
        (None, GENERIC),
        ("{{ messages }}", GENERIC),
        ("{{ tools }} <tool_call>", HERMES),
        ("{{ tools }} <tool_call><function=", GENERIC),
        ("{{ tools }} <tool_call><arg_key>", GENERIC),
        ("{{ tools }} <|start_header_id|>", LLAMA_3),
        ("{{ tools }} [TOOL_CALLS][", MISTRAL),
        ("{{ tools }} [TOOL_CALLS] [", MISTRAL_SPACED),
        ("{{ tools }} [TOOL_CALLS] [ARGS]", MISTRAL_NAMES),
        ("{{ tools }} <|some_other_mark|>", GENERIC),
    ],
)
def test_the_format_is_known_by_the_template(template: str | None, tool_format: ToolFormat) -> None:
    """By its marks; one that is not known is no reason to guess."""
    assert format_of(template) == tool_format
