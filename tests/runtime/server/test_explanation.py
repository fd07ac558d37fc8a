"""`speculation: {"explain": true}`: who proposed which token, step by step."""

import pytest

from fake_engine import FakeEngine
from serving import serving

EXPLAIN = {"speculation": {"explain": True}}
BODIES = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 5},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 5},
}


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_explains_each_step(path: str) -> None:
    """Each chunk that brings tokens says who proposed them; the pieces joined are the text."""
    async with serving(FakeEngine()) as server:
        events = await server.stream(path, **BODIES[path], **EXPLAIN)
        plain = await server.stream(path, **BODIES[path])
    choices = [event["choices"][0] for event in events if event != "[DONE]"]
    steps = [step for choice in choices for step in choice.get("speculation", {"steps": []})["steps"]]
    assert [(step["proposer"], step["drafted"], step["accepted"]) for step in steps] == [
        ("draft", 3, n) for n in (1, 1, 0)
    ]
    text = "".join(choice.get("text", choice.get("delta", {}).get("content", "")) for choice in choices)
    assert "".join(piece for step in steps for piece in step["tokens"]) == text
    assert len(text) == 5
    assert "speculation" not in str(plain)


@pytest.mark.parametrize("path", BODIES)
async def test_a_whole_answer_explains_all_its_steps(path: str) -> None:
    """The same without a stream, for each choice; and nothing where nobody asked."""
    async with serving(FakeEngine()) as server:
        _, answer = await server.post(path, **BODIES[path], n=2, **EXPLAIN)
        _, plain = await server.post(path, **BODIES[path])
    assert [len(choice["speculation"]["steps"]) for choice in answer["choices"]] == [3, 3]
    assert "speculation" not in plain["choices"][0]
