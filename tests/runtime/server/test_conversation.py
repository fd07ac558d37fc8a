"""Conversations with tools go through real templates of every family and come back as the model wrote them."""

import json
from typing import Any

import pytest

import tool_templates
from smartspec.execution.tokenizer import HuggingFaceTokenizer
from smartspec.scheduling.client import InvalidRequestError
from smartspec.server.conversation import encode_chat
from smartspec.server.protocol import ChatBody, decode_body
from smartspec.server.tool_formats import GENERIC, HERMES, LLAMA_3, MISTRAL, MISTRAL_NAMES, ToolFormat
from smartspec.server.tools import plan_tools
from tiny import byte_tokenizer

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {"type": "object"}}}
]
ARGUMENTS: dict[str, Any] = {"city": "Paris", "days": [1, 2]}


def tokenizer_of(template: str | None, *special: str) -> HuggingFaceTokenizer:
    """A byte-level tokenizer with *template*; *special* become special tokens."""
    words = byte_tokenizer(384)
    words.chat_template = template
    if special:
        words.add_special_tokens({"additional_special_tokens": list(special)})
    return HuggingFaceTokenizer(words)


def body_of(call_id: str, **fields: Any) -> ChatBody:
    """A conversation in which a tool was called and answered."""
    call = {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "rain"},
    ]
    return decode_body(json.dumps({"messages": messages, "tools": TOOLS, **fields}).encode(), ChatBody)[0]


@pytest.mark.parametrize(
    ("template", "tool_format", "call_id"),
    [
        (tool_templates.HERMES, HERMES, "call_1"),
        (tool_templates.LLAMA_3, LLAMA_3, "call_1"),
        (tool_templates.MISTRAL, MISTRAL, "abcdef123"),
        (tool_templates.MISTRAL_NAMES, MISTRAL_NAMES, "abcdef123"),
        (tool_templates.PLAIN, GENERIC, "call_1"),
    ],
)
async def test_what_a_template_writes_the_parser_reads(template: str, tool_format: ToolFormat, call_id: str) -> None:
    """The family is known by its template, and an earlier turn's call is written in the format that is read."""
    tokenizer = tokenizer_of(template)
    body = body_of(call_id)
    plan = plan_tools(body, tokenizer)
    assert plan is not None
    assert plan.tool_format == tool_format
    tokens = await encode_chat(tokenizer, body.messages, tools=plan.told, instructions=plan.instructions)
    prompt = tokenizer.decode(tokens, skip_special_tokens=False)
    assert "rain" in prompt
    assert '"description": "d"' in prompt
    begin = prompt.rindex(tool_format.mark or '{"name": "get_weather"')
    parser = plan.parser()
    calls = parser.push(prompt[begin : prompt.index("rain")]).calls
    assert calls[0].name == "get_weather"
    assert json.loads("".join(call.arguments for call in calls if call.index == 0)) == ARGUMENTS


async def test_half_a_surrogate_pair_in_arguments_is_no_error() -> None:
    """A model may write one into JSON, and its client sends it back: the tokenizer is given U+FFFD in its place."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": r'{"a": "x\ud83dy\ud83d\ude00"}'},
    }
    messages = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    body = decode_body(json.dumps(messages).encode(), ChatBody)[0]
    tokenizer = tokenizer_of("{{ messages[0].tool_calls[0].function.arguments.a }}")
    assert tokenizer.decode(await encode_chat(tokenizer, body.messages)) == "x\ufffdy\U0001f600"


async def test_a_template_s_refusal_is_told() -> None:
    """Mistral's takes ids of nine letters only."""
    tokenizer, body = tokenizer_of(tool_templates.MISTRAL), body_of("call_1")
    with pytest.raises(InvalidRequestError, match="nine letters"):
        await encode_chat(tokenizer, body.messages)


def test_special_tokens_are_shown_only_where_they_mark_calls() -> None:
    """A mark that is a special token would be left out of the text; one that is plain text needs nothing."""
    mark = "[TOOL_CALLS]"
    for tokenizer, shown in (
        (tokenizer_of(tool_templates.MISTRAL, mark), True),
        (tokenizer_of(tool_templates.MISTRAL), False),
    ):
        plan = plan_tools(body_of("abcdef123", tool_choice="required"), tokenizer)
        assert plan is not None
        assert plan.shows_marks == shown
        assert plan.form is not None
        assert (f"<[{tokenizer.token_of(mark)}]>" in plan.form[1].source) == shown
