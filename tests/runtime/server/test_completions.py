"""`POST /v1/completions`: what goes in, what comes out, whole and streamed."""

import threading
from typing import Any

import pytest

from fake_engine import CharacterTokenizer, FakeEngine
from serving import serving


def usage_of(*, prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def test_text_prompt_is_completed() -> None:
    """A text prompt gets its continuation, the true finish reason and usage."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/completions", model="fake", prompt="abc", max_tokens=5)
    assert status == 200
    assert answer["object"] == "text_completion"
    choice = {"index": 0, "text": "cbacb", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    assert answer["choices"] == [choice]
    assert answer["usage"] == usage_of(prompt=4, completion=5)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["bab"]),
        (["ab", "xyz"], ["bab", "zyx"]),
        ([97, 98], ["bab"]),
        ([[97, 98], [120, 121, 122]], ["bab", "zyx"]),
    ],
)
async def test_prompt_takes_all_four_forms(prompt: Any, texts: list[str]) -> None:
    """Text, texts, token ids and lists of token ids: one choice each, in order."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/completions", prompt=prompt, max_tokens=3)
    assert status == 200
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))


class CountingTokenizer(CharacterTokenizer):
    """Knows how often it was used, and by which threads."""

    def __init__(self) -> None:
        self.num_encoded = 0
        self.threads: set[int] = set()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As its parent."""
        self.num_encoded += 1
        self.threads.add(threading.get_ident())
        return super().encode(text, add_special_tokens=add_special_tokens)


async def test_too_many_prompts_are_refused_unread() -> None:
    """A body has room for a million short texts: to tokenise them first would hold everyone up for nothing."""
    engine = FakeEngine()
    engine.tokenizer = tokenizer = CountingTokenizer()
    async with serving(engine) as server:
        status, answer = await server.post("/v1/completions", prompt=["a"] * 129, n=2)
    assert (status, answer["error"]["param"]) == (400, "prompt")
    assert tokenizer.num_encoded == 0


@pytest.mark.parametrize(("num_texts", "is_beside"), [(2, False), (200, True)])
async def test_much_text_is_tokenised_beside_the_loop(num_texts: int, is_beside: bool) -> None:
    """What counts is all of a request's text, in however many prompts: streams of others go on meanwhile."""
    engine = FakeEngine(max_num_seqs=256)
    engine.tokenizer = tokenizer = CountingTokenizer()
    async with serving(engine) as server:
        status, _ = await server.post("/v1/completions", prompt=["a" * 100] * num_texts, max_tokens=1)
    assert status == 200
    assert (tokenizer.threads != {threading.get_ident()}) is is_beside


async def test_n_choices_per_prompt_count_the_prompt_once() -> None:
    """Choices of a prompt stand together, each with a seed of its own, and usage counts each prompt once."""
    engine = FakeEngine()
    async with serving(engine) as server:
        _, answer = await server.post("/v1/completions", prompt=["a", "b"], n=2, seed=7, max_tokens=2)
    assert [choice["text"] for choice in answer["choices"]] == ["aa", "aa", "bb", "bb"]
    assert [request.sampling.seed for request in engine.requests] == [7, 8, 7, 8]
    assert answer["usage"] == usage_of(prompt=4, completion=8)


async def test_usage_tells_what_was_cached_once_a_prompt() -> None:
    """Like prompt tokens, tokens found in the prefix cache count once for all choices of a prompt."""
    async with serving(FakeEngine(num_cached_tokens=1)) as server:
        _, answer = await server.post("/v1/completions", prompt=["a", "b"], n=2, max_tokens=2)
    assert answer["usage"] == usage_of(prompt=4, completion=8, cached=2)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "abc"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
async def test_a_cache_salt_reaches_the_engine(path: str, body: dict[str, Any]) -> None:
    """vLLM's field decides with whom a prefix is shared; an empty one is a mistake, and none means with all."""
    engine = FakeEngine()
    async with serving(engine) as server:
        await server.post(path, **body, max_tokens=1, cache_salt="tenant")
        await server.post(path, **body, max_tokens=1)
        status, answer = await server.post(path, **body, cache_salt="")
    assert [request.cache_salt for request in engine.requests] == ["tenant", ""]
    assert (status, answer["error"]["param"]) == (400, "cache_salt")


async def test_sampling_fields_reach_the_engine() -> None:
    """Every field that shapes the answer is passed on as it was sent."""
    engine = FakeEngine()
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_k": 9, "top_p": 0.8, "min_p": 0.1, "seed": 3, "stop": ["x", "yz"], "max_tokens": 6,
        "stop_token_ids": [5, 5], "min_tokens": 2, "ignore_eos": True, "logprobs": 0,
        "speculation": {"mode": "fixed", "max_tokens": 4},
    }  # fmt: skip
    async with serving(engine) as server:
        status, _ = await server.post("/v1/completions", prompt="a", **fields)
    assert status == 200
    sampling, speculation = engine.requests[0].sampling, engine.requests[0].speculation
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 9, 0.8, 0.1)
    assert (sampling.seed, sampling.stop, sampling.max_tokens) == (3, ("x", "yz"), 6)
    assert (sampling.stop_token_ids, sampling.min_tokens, sampling.ignore_eos) == (frozenset({5}), 2, True)
    assert sampling.logprobs == 0
    assert (speculation.mode, speculation.max_tokens) == ("fixed", 4)


async def test_defaults_are_the_api_s() -> None:
    """A body with a prompt alone, or with nulls, means OpenAI's defaults."""
    engine = FakeEngine()
    async with serving(engine) as server:
        await server.post("/v1/completions", prompt="a")
        await server.post("/v1/completions", prompt="a", temperature=None, stop=None, max_tokens=None, top_k=-1)
    assert engine.requests[0].sampling == engine.requests[1].sampling
    sampling = engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.seed) == (16, 1.0, 0, None)


@pytest.mark.parametrize("logprobs", [0, True])
async def test_logprobs_are_the_chosen_tokens(logprobs: Any) -> None:
    """0 gives the chosen token's, with where in the text each token begins."""
    async with serving(FakeEngine()) as server:
        _, answer = await server.post("/v1/completions", prompt="abc", max_tokens=3, logprobs=logprobs)
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["c", "b", "a"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "text_offset": [0, 1, 2],
        "top_logprobs": None,
    }


async def test_stream_says_the_same_as_the_whole() -> None:
    """Chunks join to the text; the last one of the choice has the finish reason; `[DONE]` ends it."""
    async with serving(FakeEngine(tokens_per_step=2)) as server:
        *chunks, done = await server.stream("/v1/completions", prompt="abc", max_tokens=5, logprobs=1)
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == "cbacb"
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    assert [offset for choice in choices for offset in choice["logprobs"]["text_offset"]] == [0, 1, 2, 3, 4]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in chunks[0]


async def test_stream_usage_comes_last_when_asked_for() -> None:
    """`include_usage` adds a chunk without choices; the others say null."""
    async with serving(FakeEngine()) as server:
        *chunks, last, _ = await server.stream(
            "/v1/completions", prompt="abc", max_tokens=5, stream_options={"include_usage": True}
        )
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == usage_of(prompt=4, completion=5)


async def test_continuous_usage_counts_up() -> None:
    """`continuous_usage_stats` puts the totals so far into every chunk."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with serving(FakeEngine(tokens_per_step=2)) as server:
        *chunks, _ = await server.stream("/v1/completions", prompt="abc", max_tokens=5, stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [2, 4, 5, 5]


async def test_several_choices_share_one_stream() -> None:
    """Chunks of all choices come interleaved, each with its index, and each choice ends."""
    async with serving(FakeEngine()) as server:
        *chunks, _ = await server.stream("/v1/completions", prompt=["ab", "cd"], max_tokens=4)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "baba", 1: "dcdc"}
    assert sum(chunk["choices"][0]["finish_reason"] == "length" for chunk in chunks) == 2


async def test_unknown_fields_are_ignored_with_a_word() -> None:
    """A field nobody knows changes nothing and is named in a header; known harmless ones pass silently."""
    async with serving(FakeEngine()) as server:
        body = {"prompt": "a", "user": "u", "frobnicate": 1, "bad name\r\n": 2}
        async with server.public.post("/v1/completions", json=body) as response:
            assert response.status == 200
            assert response.headers["X-SmartSpec-Ignored-Fields"] == "frobnicate"


async def test_long_prompts_are_tokenised_all_the_same() -> None:
    """A prompt too long for the model is counted (beside the event loop) and refused with both numbers."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/completions", prompt="x" * 20_000)
    assert status == 400
    assert answer["error"]["param"] == "prompt"
    assert answer["error"]["code"] == "context_length_exceeded"
    assert "256" in answer["error"]["message"]
    assert "20001" in answer["error"]["message"]
