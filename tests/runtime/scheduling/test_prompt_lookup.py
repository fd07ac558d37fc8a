"""Prompt lookup finds what a search of the whole text would find, at a cost per token that does not grow."""

import time

from hypothesis import given
from hypothesis import strategies as st

from smartspec.scheduling.prompt_lookup import MAX_MATCH_TOKENS, NGRAM_SIZES, NO_MATCH, PromptLookup


def search(tokens: list[int], max_tokens: int) -> tuple[int, ...] | None:
    """The continuation of the latest earlier occurrence of the longest ending n-gram, by brute force."""
    for size in NGRAM_SIZES:
        for end in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) >= size and tokens[end - size : end] == tokens[-size:]:
                return tuple(tokens[end + i % (len(tokens) - end)] for i in range(max_tokens))
    return None


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(1, 5), max_size=40), st.integers(1, 8))
def test_it_finds_what_a_search_finds(text: list[int], steps: list[int], max_tokens: int) -> None:
    """However many tokens come at once, the copied tokens are those after the latest longest match."""
    tokens: list[int] = []
    lookup = PromptLookup(tokens)
    for step in [*steps, len(text)]:
        tokens.extend(text[len(tokens) : len(tokens) + step])
        match = lookup.find(max_tokens)
        expected = search(tokens, max_tokens)
        assert match.token_ids == (expected or ())
        assert (match == NO_MATCH) == (expected is None)


def test_the_match_length_is_followed_back() -> None:
    """How long the match is, up to a bound, says how far to trust it."""
    passage = [*range(10, 18)]
    assert PromptLookup([1, *passage, 2, *passage]).find(2).match_tokens == 8
    assert PromptLookup([*range(100), 7, *range(100)]).find(1).match_tokens == MAX_MATCH_TOKENS


def test_a_step_costs_the_same_in_a_long_text() -> None:
    """A thousand tokens cost about as much after a hundred thousand others as after a thousand."""

    def seconds_at(length: int) -> float:
        tokens = [i * 7919 % 50021 for i in range(length)]
        lookup = PromptLookup(tokens)
        lookup.find(4)
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            for i in range(300):
                tokens.append(i % 50)
                lookup.find(4)
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds_at(100_000) < 10 * seconds_at(1_000)
