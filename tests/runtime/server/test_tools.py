"""Tools over HTTP, as the openai client meets them: told, called, streamed, chosen, and refused by name."""

import json
from dataclasses import replace
from typing import Any

import openai
import pytest

import tool_templates
from fake_engine import FakeEngine
from serving import serving

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
MESSAGES: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
ARGUMENTS = '{"city": "Paris"}'
ANSWERS = {
    "hermes": (
        tool_templates.HERMES,
        (
            'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        ),
        "I look.",
    ),
    "llama": (
        tool_templates.LLAMA_3,
        '{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "now", "parameters": {}}',
        None,
    ),
    "mistral": (
        tool_templates.MISTRAL,
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "now", "arguments": {}}]',
        None,
    ),
    "mistral names": (
        tool_templates.MISTRAL_NAMES, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now{}', None,
    ),
    "generic": (
        tool_templates.PLAIN,
        '{"name": "get_weather", "arguments": {"city": "Paris"}}\n{"name": "now", "arguments": {}}',
        None,
    ),
}  # fmt: skip


def saying(answer: str, template: str | None = tool_templates.HERMES, **options: Any) -> FakeEngine:
    """An engine whose model has *template* and says *answer*."""
    engine = FakeEngine(answer=answer, **options)
    engine.info = replace(engine.info, max_model_len=4096)
    engine.tokenizer.chat_template = template
    return engine


def client_of(port: int) -> openai.AsyncOpenAI:
    """OpenAI's client."""
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)


@pytest.mark.parametrize("family", ANSWERS)
@pytest.mark.parametrize("tokens_per_step", [1, 7, 1000])
async def test_calls_of_every_family(family: str, tokens_per_step: int) -> None:
    """Whole and streamed: content without markup, calls with ids, names and arguments, and why it ended."""
    template, answer, content = ANSWERS[family]
    async with (
        serving(saying(answer, template, tokens_per_step=tokens_per_step)) as server,
        client_of(server.public_port) as client,
    ):
        whole = await client.chat.completions.create(model="fake", messages=MESSAGES, tools=TOOLS)
        [choice] = whole.choices
        calls = choice.message.tool_calls or []
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == content
        assert [(c.function.name, c.function.arguments) for c in calls if c.type == "function"] == [
            ("get_weather", ARGUMENTS), ("now", "{}"),
        ]  # fmt: skip
        assert len({c.id for c in calls}) == 2
        if family.startswith("mistral"):
            assert all(len(c.id) == 9 and c.id.isalnum() for c in calls)
        async with client.chat.completions.stream(model="fake", messages=MESSAGES, tools=TOOLS) as stream:
            first_names = []
            async for event in stream:
                if event.type == "chunk":
                    for delta in event.chunk.choices[0].delta.tool_calls or [] if event.chunk.choices else []:
                        if delta.index == len(first_names):
                            assert delta.id
                            assert delta.function is not None
                            first_names.append(delta.function.name)
            final = (await stream.get_final_completion()).choices[0]
        assert first_names == ["get_weather", "now"]
        assert final.finish_reason == "tool_calls"
        assert (final.message.content or None) == content
        assert [(c.function.name, c.function.arguments) for c in final.message.tool_calls or []] == [
            ("get_weather", ARGUMENTS), ("now", "{}"),
        ]  # fmt: skip


async def test_a_text_is_still_a_text() -> None:
    """Tools that are not called change nothing; an answer that was cut says so, whatever it had called."""
    async with serving(saying("It rains.\n")) as server:
        status, answer = await server.post("/v1/chat/completions", messages=MESSAGES, tools=TOOLS)
        assert (status, answer["choices"][0]["message"]) == (
            200, {"role": "assistant", "content": "It rains.\n", "refusal": None},
        )  # fmt: skip
        assert answer["choices"][0]["finish_reason"] == "stop"
    async with serving(saying(ANSWERS["hermes"][1])) as server:
        status, answer = await server.post("/v1/chat/completions", messages=MESSAGES, tools=TOOLS, max_tokens=60)
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


async def test_parallel_calls_can_be_refused() -> None:
    """With `parallel_tool_calls` false only the first call is one."""
    async with serving(saying(ANSWERS["hermes"][1])) as server:
        _, answer = await server.post("/v1/chat/completions", messages=MESSAGES, tools=TOOLS, parallel_tool_calls=False)
        assert [c["function"]["name"] for c in answer["choices"][0]["message"]["tool_calls"]] == ["get_weather"]


@pytest.mark.parametrize(
    ("choice", "functions", "several"),
    [
        (None, [], False),
        ("auto", [], False),
        ("none", [], False),
        ("required", ["get_weather", "now"], True),
        ({"type": "function", "function": {"name": "now"}}, ["now"], False),
    ],
)
async def test_a_choice_is_enforced_by_a_grammar(choice: Any, functions: list[str], several: bool) -> None:
    """Only where a call is due, and only of the functions that may be called."""
    engine = saying("x")
    async with serving(engine) as server:
        body = {"messages": MESSAGES, "tools": TOOLS} | ({"tool_choice": choice} if choice else {})
        status, _ = await server.post("/v1/chat/completions", **body)
        assert status == 200
        assert len(engine.grammars) == bool(functions)
        assert (engine.requests[0].rule is not None) == bool(functions)
        if functions:
            source = engine.grammars[0].source
            assert [f for f in ("get_weather", "now") if json.dumps(f'{{"name": "{f}"')[1:-1] in source] == functions
            assert ("call)*" in source) == several


async def test_strict_tools_are_held_to_their_schemas_when_called_freely() -> None:
    """One strict function is enough for a grammar under `auto`; text may stand instead of a call."""
    strict = [TOOLS[0], {"type": "function", "function": {**TOOLS[1]["function"], "strict": True}}]
    engine = saying("Hello.")
    async with serving(engine) as server:
        status, answer = await server.post("/v1/chat/completions", messages=MESSAGES, tools=strict)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello.")
    assert "TEXT" in engine.grammars[0].source
    assert engine.requests[0].rule is not None


async def test_tools_are_told_to_the_model() -> None:
    """By its template, or in a system message where that knows none of our formats; never when none may be called."""
    for template, told in (
        (tool_templates.HERMES, ""),
        (tool_templates.PLAIN, '"name": "get_weather"'),
        ("{{ tools }} in <|another format|>", '"name": "now"'),
        (None, '"now"'),
    ):
        engine = saying("x", template)
        async with serving(engine) as server:
            for choice in ("auto", "none"):
                await server.post("/v1/chat/completions", messages=MESSAGES, tools=TOOLS, tool_choice=choice)
        with_tools, without = (engine.tokenizer.decode(request.prompt_token_ids) for request in engine.requests)
        assert told in with_tools
        assert ("system:" in with_tools) == bool(told)
        assert "get_weather" not in without


async def test_earlier_calls_and_results_are_told_as_well() -> None:
    """A conversation with calls in it comes through a template that knows none."""
    engine = saying("x", None)
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]  # fmt: skip
    async with serving(engine) as server:
        status, _ = await server.post("/v1/chat/completions", messages=messages, tools=TOOLS)
        assert status == 200
    prompt = engine.tokenizer.decode(engine.requests[0].prompt_token_ids)
    assert '"arguments": {"city": "Paris"}' in prompt
    assert "rain" in prompt


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "no_such"}}}, "tool_choice.function.name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "wrong"}}}],
            },
            "tools",
        ),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(changed: dict[str, Any], param: str) -> None:
    """A 400 that says which field."""
    async with serving(saying("x")) as server:
        status, answer = await server.post("/v1/chat/completions", **({"messages": MESSAGES, "tools": TOOLS} | changed))
        assert (status, answer["error"]["param"]) == (400, param)
        assert answer["error"]["message"]
