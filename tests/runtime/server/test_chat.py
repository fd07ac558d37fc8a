"""`POST /v1/chat/completions`: conversations, whole and streamed."""

from typing import Any

import pytest

from fake_engine import FakeEngine
from serving import serving

HELLO = [{"role": "user", "content": "hi"}]


async def test_conversation_is_answered() -> None:
    """The template's text, without a second begin token, is continued as the assistant's message."""
    engine = FakeEngine()
    async with serving(engine) as server:
        status, answer = await server.post("/v1/chat/completions", model="fake", messages=HELLO, max_tokens=4)
    assert status == 200
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": " :tn", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert "".join(map(chr, engine.requests[0].prompt_token_ids)) == "user: hi\nassistant: "
    assert answer["usage"]["completion_tokens"] == 4


async def test_content_parts_are_joined() -> None:
    """Content may be parts of type text; `developer` is another word for `system`."""
    engine = FakeEngine()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be"}, {"role": "user", "content": parts, "name": "n"}]
    async with serving(engine) as server:
        status, _ = await server.post("/v1/chat/completions", messages=messages, max_tokens=1)
    assert status == 200
    assert "".join(map(chr, engine.requests[0].prompt_token_ids)) == "system: be\nuser: ab\nassistant: "


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([*HELLO, {"role": "robot", "content": "x"}], "messages[1].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c"}], "messages"),
        ([], "messages"),
        (None, "messages"),
    ],
)
async def test_bad_messages_are_named(messages: Any, param: str) -> None:
    """What is wrong with a conversation is said with the path to it."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/chat/completions", messages=messages)
    assert status == 400
    assert answer["error"]["param"] == param


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_both_names_bound_the_answer(name: str) -> None:
    """`max_completion_tokens` is the newer name of `max_tokens`."""
    engine = FakeEngine()
    async with serving(engine) as server:
        await server.post("/v1/chat/completions", messages=HELLO, **{name: 3})
    assert engine.requests[0].sampling.max_tokens == 3


async def test_without_a_bound_the_answer_may_fill_the_context() -> None:
    """A chat without max_tokens may run to the model's length."""
    engine = FakeEngine(tokens_per_step=64)
    async with serving(engine) as server:
        _, answer = await server.post("/v1/chat/completions", messages=HELLO)
    assert answer["usage"]["total_tokens"] == 256


async def test_stream_opens_with_the_role() -> None:
    """The first chunk has the role, then come texts, and the last chunk of the choice has the finish reason."""
    async with serving(FakeEngine(tokens_per_step=2)) as server:
        first, *chunks, done = await server.stream("/v1/chat/completions", messages=HELLO, max_tokens=4)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == [" :", "tn"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "length"]
    assert done == "[DONE]"


async def test_logprobs_have_the_chat_shape() -> None:
    """`logprobs: true` gives one entry per token with its bytes, streamed or not."""
    entries = [{"token": token, "logprob": -0.5, "bytes": [ord(token)], "top_logprobs": []} for token in " :t"]
    async with serving(FakeEngine()) as server:
        body: dict[str, Any] = {"messages": HELLO, "max_tokens": 3, "logprobs": True}
        _, answer = await server.post("/v1/chat/completions", **body)
        _, *chunks, _ = await server.stream("/v1/chat/completions", **body)
    assert answer["choices"][0]["logprobs"]["content"] == entries
    streamed = [entry for chunk in chunks for entry in chunk["choices"][0]["logprobs"]["content"]]
    assert streamed == entries
