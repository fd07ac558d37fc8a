"""Log probabilities, echo and best_of as the endpoints write them, whole and streamed."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from msgspec.structs import replace

from fake_engine import FakeEngine
from serving import serving
from smartspec.scheduling.client import GenerationDelta, GenerationRequest

HELLO = [{"role": "user", "content": "x"}]


async def test_sampling_fields_reach_the_engine() -> None:
    """Penalties, bias (keys are token ids) and log probabilities are passed on as they were sent."""
    engine = FakeEngine()
    fields: dict[str, Any] = {
        "presence_penalty": 0.5, "frequency_penalty": -2, "repetition_penalty": 1.2,
        "logit_bias": {"98": 3, "97": -100}, "logprobs": 3, "prompt_logprobs": 2,
    }  # fmt: skip
    async with serving(engine) as server:
        status, answer = await server.post("/v1/completions", prompt="ab", **fields)
        assert status == 200, answer
        await server.post("/v1/completions", prompt="ab")
    sampling = engine.requests[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -2.0, 1.2)
    assert sampling.logit_bias == ((97, -100.0), (98, 3.0))
    assert (sampling.logprobs, sampling.prompt_logprobs) == (3, 2)
    plain = engine.requests[1].sampling
    assert (plain.logit_bias, plain.logprobs, plain.prompt_logprobs, plain.adjusts_logits) == ((), None, None, False)


async def test_top_logprobs_name_the_most_probable_by_text() -> None:
    """Completions: one object for each token, the chosen one among its entries."""
    async with serving(FakeEngine()) as server:
        _, answer = await server.post("/v1/completions", prompt="ab", max_tokens=2, logprobs=2)
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"b": -0.5, "c": -1.5}, {"a": -0.5, "b": -1.5}]


async def test_chat_top_logprobs_have_entries_of_their_own() -> None:
    """Chat: in falling order, with bytes."""
    async with serving(FakeEngine()) as server:
        body: dict[str, Any] = {"messages": HELLO, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}
        _, answer = await server.post("/v1/chat/completions", **body)
        _, *chunks, _ = await server.stream("/v1/chat/completions", **body)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert entries[1] == {
        "token": ":", "logprob": -0.5, "bytes": [58],
        "top_logprobs": [
            {"token": ":", "logprob": -0.5, "bytes": [58]}, {"token": ";", "logprob": -1.5, "bytes": [59]},
        ],
    }  # fmt: skip
    assert [entry for chunk in chunks for entry in chunk["choices"][0]["logprobs"]["content"]] == entries


async def test_prompt_logprobs_are_vllm_s() -> None:
    """Null for the first token, then by token id; of every choice, though one choice was asked; once for chat."""
    engine = FakeEngine()
    async with serving(engine) as server:
        _, answer = await server.post("/v1/completions", prompt=[97, 98], max_tokens=1, n=2, prompt_logprobs=2)
        _, chat = await server.post("/v1/chat/completions", messages=HELLO, max_tokens=1, prompt_logprobs=0)
    expected = [
        None,
        {
            "98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
            "99": {"logprob": -1.5, "rank": 2, "decoded_token": "c"},
        },
    ]
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == [expected, expected]
    assert [one.sampling.prompt_logprobs for one in engine.requests] == [2, None, 0]
    assert chat["prompt_logprobs"][0] is None
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
async def test_echo_begins_with_the_prompt(prompt: Any) -> None:
    """Its text and its log probabilities, the first of which is null; offsets run through."""
    async with serving(FakeEngine()) as server:
        _, answer = await server.post(
            "/v1/completions", prompt=prompt, max_tokens=2, echo=True, logprobs=1, n=2, add_special_tokens=False
        )
        events = await server.stream(
            "/v1/completions", prompt=prompt, max_tokens=2, echo=True, logprobs=1, n=2, add_special_tokens=False
        )
    streamed = ["", ""]
    for event in events[:-1]:
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == ["abccb", "abccb"]
    for choice in answer["choices"]:
        assert choice["text"] == "abccb"
        assert choice["logprobs"] == {
            "tokens": ["a", "b", "c", "c", "b"],
            "token_logprobs": [None, -0.5, -0.5, -0.5, -0.5],
            "top_logprobs": [None, {"b": -0.5}, {"c": -0.5}, {"c": -0.5}, {"b": -0.5}],
            "text_offset": [0, 1, 2, 3, 4],
        }
    assert answer["usage"]["completion_tokens"] == 4
    assert events[0]["choices"][0]["logprobs"]["token_logprobs"][0] is None


async def test_echo_alone_generates_nothing() -> None:
    """`max_tokens: 0` scores a prompt: no token of an answer in text, log probabilities or usage."""
    async with serving(FakeEngine()) as server:
        body: dict[str, Any] = {"prompt": [97, 98], "max_tokens": 0, "echo": True, "logprobs": 0}
        _, answer = await server.post("/v1/completions", **body)
        *_, last, _ = await server.stream("/v1/completions", **body, stream_options={"include_usage": True})
        status, refusal = await server.post("/v1/completions", prompt="a", max_tokens=0)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5]
    assert answer["usage"]["completion_tokens"] == last["usage"]["completion_tokens"] == 0
    assert (status, refusal["error"]["param"]) == (400, "max_tokens")


class Ranking(FakeEngine):
    """The sequence numbered 1 of four is the most probable, then 3, 0, 2."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """As its parent, with other log probabilities."""
        number = int(request.request_id.rsplit("-", 1)[1])
        deltas = super().generate(request)

        async def ranked() -> AsyncGenerator[GenerationDelta, None]:
            async for delta in deltas:
                level = (-3.0, -1.0, -4.0, -2.0)[number]
                yield replace(
                    delta, text=str(number), logprobs=tuple(replace(one, logprob=level) for one in delta.logprobs)
                )

        return ranked()


async def test_best_of_returns_the_most_probable() -> None:
    """By mean log probability, best first; what was generated for nothing is in the usage all the same."""
    engine = Ranking()
    async with serving(engine) as server:
        status, answer = await server.post("/v1/completions", prompt="a", max_tokens=1, n=2, best_of=4, seed=7)
    assert status == 200
    assert [choice["text"] for choice in answer["choices"]] == ["1", "3"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 4
    assert [one.sampling.seed for one in engine.requests] == [7, 8, 9, 10]


async def test_token_ids_are_returned_when_asked_for() -> None:
    """Whole, and in a stream with those of the prompt once."""
    async with serving(FakeEngine(tokens_per_step=2)) as server:
        body: dict[str, Any] = {"prompt": [97, 98, 99], "max_tokens": 3, "return_token_ids": True}
        _, answer = await server.post("/v1/completions", **body)
        *chunks, _ = await server.stream("/v1/completions", **body)
    (choice,) = answer["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([97, 98, 99], [99, 98, 97])
    assert [chunk["choices"][0].get("prompt_token_ids") for chunk in chunks] == [[97, 98, 99], None]
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == [99, 98, 97]


async def test_more_prompt_log_probabilities_than_an_answer_has_are_refused() -> None:
    """Token ids times alternatives are bounded, over all prompts of a request, and the field is named."""
    engine = FakeEngine()
    async with serving(engine) as server:
        many: dict[str, Any] = {"prompt": [[97] * 200] * 20, "max_tokens": 1}
        status, answer = await server.post("/v1/completions", **many, prompt_logprobs=20)
        assert (status, answer["error"]["param"]) == (400, "prompt_logprobs")
        status, answer = await server.post("/v1/completions", **many, echo=True, logprobs=20)
        assert (status, answer["error"]["param"]) == (400, "logprobs")
    assert engine.requests == []
