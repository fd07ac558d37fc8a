"""bad_words and allowed_token_ids: token ids for the engine, and a 400 for what would leave nothing to say."""

from typing import Any

import pytest

from fake_engine import INFO, CharacterTokenizer, FakeEngine
from serving import serving
from smartspec.server.bans import banned
from smartspec.server.errors import ApiError
from smartspec.server.protocol import CompletionBody

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
}


class MergingTokenizer(CharacterTokenizer):
    """Has a token for " cat", as tokenizers of words have, and none for a soft hyphen."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Code points, but for that word."""
        return [9000 if c == "\0" else ord(c) for c in text.replace(" cat", "\0").replace("\xad", "")]


async def spelled(*words: str) -> tuple[tuple[int, ...], ...]:
    """The token ids that these bad words rule out."""
    return (await banned(INFO, MergingTokenizer(), CompletionBody(prompt="a", bad_words=list(words))))[1]


async def test_a_word_is_banned_at_a_beginning_and_after_a_space() -> None:
    """By other tokens if it has others there; nothing twice, nothing that another ban says already."""
    assert await spelled("cat") == await spelled(" cat", "cat") == ((99, 97, 116), (9000,))
    assert await spelled("dog", "dog") == ((100, 111, 103),)
    assert await spelled("\n") == ((10,),)


async def test_a_word_without_tokens_is_refused() -> None:
    """It could not be kept out of anything."""
    with pytest.raises(ApiError, match="has no tokens"):
        await spelled("a", "\xad")


@pytest.mark.parametrize("path", BODIES)
async def test_bans_reach_the_engine(path: str) -> None:
    """Sorted, each token once; without the fields nothing is banned."""
    engine = FakeEngine()
    async with serving(engine) as server:
        await server.post(path, **BODIES[path], bad_words=["xy", "z"], allowed_token_ids=[7, 5, 7])
        await server.post(path, **BODIES[path], bad_words=[], allowed_token_ids=None)
    first, second = (request.sampling for request in engine.requests)
    assert (first.bad_words, first.allowed_token_ids) == (((120, 121), (122,)), (5, 7))
    assert not second.bans_tokens


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("bad_words", {"bad_words": "x"}), ("bad_words", {"bad_words": [""]}), ("bad_words", {"bad_words": [3]}),
        ("bad_words", {"bad_words": ["a"] * 1025}), ("bad_words", {"bad_words": ["a" * 257]}),
        ("bad_words", {"bad_words": ["xa", "b"], "allowed_token_ids": [97, 98]}),
        ("allowed_token_ids", {"allowed_token_ids": []}), ("allowed_token_ids", {"allowed_token_ids": [-1]}),
        ("allowed_token_ids", {"allowed_token_ids": [0x110000]}), ("allowed_token_ids", {"allowed_token_ids": 5}),
    ],
)  # fmt: skip
async def test_bans_that_cannot_be_are_refused_by_name(path: str, field: str, fields: dict[str, Any]) -> None:
    """Out of bounds, or such that a text could come to where nothing may follow."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post(path, **BODIES[path], **fields)
    assert (status, answer["error"]["param"].split("[")[0]) == (400, field)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stop_reason", ["END", 7, None])
async def test_what_ended_a_text_is_said(path: str, stop_reason: int | str | None) -> None:
    """In each choice; in a stream in the chunk that has the finish reason; null where no stop of the request did."""
    async with serving(FakeEngine(answer="abc", stop_reason=stop_reason)) as server:
        _, whole = await server.post(path, **BODIES[path], n=2)
        _, cut = await server.post(path, **BODIES[path], max_tokens=2)
        *chunks, _ = await server.stream(path, **BODIES[path])
    assert [choice["stop_reason"] for choice in whole["choices"]] == [stop_reason] * 2
    assert cut["choices"][0]["stop_reason"] is None
    assert [chunk["choices"][0].get("stop_reason", "absent") for chunk in chunks][-1] == stop_reason
    assert all("stop_reason" not in chunk["choices"][0] for chunk in chunks[:-1])
