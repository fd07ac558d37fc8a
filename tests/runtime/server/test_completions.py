"""`POST /v1/completions`: what goes in, what comes out, whole and streamed."""


from fake_engine import FakeEngine
from serving import serving


async def test_text_prompt_is_completed() -> None:
    """A text prompt gets its continuation, the true finish reason and usage."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/completions", model="fake", prompt="abc", max_tokens=5)
    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "cbacb", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
