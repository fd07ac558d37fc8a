"""Prompt lookup finds what a search of the whole text would find, at a cost per token that does not grow."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smartspec.scheduling.prompt_lookup import (
    LONGEST_GRAM,
    MAX_MATCH_TOKENS,
    NO_MATCH,
    SHORTEST_GRAM,
    Match,
    PromptLookups,
)
from smartspec.scheduling.request import Request, SamplingParams


def request(token_ids: Sequence[int], request_id: str = "r") -> Request:
    """One with so much text."""
    return Request(request_id, list(token_ids), SamplingParams(), 0, 0.0)


def found(token_ids: Sequence[int], max_tokens: int) -> Match:
    """What is found in a text at once."""
    (match,) = PromptLookups().find([request(token_ids)], [max_tokens])
    return match


def search(tokens: list[int], max_tokens: int) -> Match:
    """The continuation of the latest earlier occurrence of the longest ending n-gram, by brute force."""
    for size in range(LONGEST_GRAM, SHORTEST_GRAM - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                copied = tuple(tokens[end + i % (len(tokens) - end)] for i in range(max_tokens))
                equal = [tokens[end - 1 - i] == tokens[-1 - i] for i in range(min(end, MAX_MATCH_TOKENS))]
                return Match(copied, [*equal, False].index(False))
    return NO_MATCH


TEXTS = st.integers(1, 4).flatmap(lambda most: st.lists(st.integers(0, most), max_size=12))
APPENDED = st.one_of(TEXTS, st.tuples(TEXTS, st.integers(2, 60)).map(lambda drawn: drawn[0] * drawn[1]))
STEPS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 5), APPENDED),  # tokens that come to requests, which are new where unknown
        st.lists(st.integers(0, 9), min_size=6, max_size=6),  # how many each may copy
        st.sets(st.integers(0, 5), max_size=2),  # those that end
        st.booleans(),  # whether those that run stand in another order
    ),
    max_size=12,
)


@given(STEPS)
@settings(max_examples=200)
def test_it_finds_what_a_search_finds(steps: list[Any]) -> None:
    """Of many requests, however many tokens come at once, whoever comes and goes and whoever is left out meanwhile."""
    lookups, running, began = PromptLookups(), dict[int, Request](), 0
    for appended, rooms, ended, turned in steps:
        for number, token_ids in appended.items():
            if number not in running:
                running[number] = request([], f"request {number}")
                began += 1
            running[number].token_ids += token_ids
        numbers = list(running)
        if turned:
            numbers.reverse()
        requests, max_tokens = [running[number] for number in numbers], [rooms[number] for number in numbers]
        matches = lookups.find(requests, max_tokens)
        for asked, most, match in zip(requests, max_tokens, matches, strict=True):
            assert match == (search(asked.token_ids, most) if most else NO_MATCH)
        for number in ended & set(running):
            lookups.forget(running.pop(number).request_id)
    for asked in running.values():
        lookups.forget(asked.request_id)
    assert not lookups


def test_an_index_outgrows_its_memory_many_times() -> None:
    """From nothing to thousands of tokens, some at a time; what was found before is found after."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 40, size=5000).tolist()
    lookups, growing, at = PromptLookups(), request([]), 0
    while at < len(tokens):
        growing.token_ids += tokens[at : at + 97]
        at += 97
        assert lookups.find([growing], [5]) == [search(growing.token_ids, 5)]


def test_memory_is_given_back() -> None:
    """A slot is taken again by whoever comes next, and holds nothing between."""
    lookups = PromptLookups()
    for number in range(20):
        pair = [request([1, 2, 3, 1, 2, number], f"{number}.{i}") for i in range(2)]
        lookups.find(pair, [3, 3])
        assert len(lookups) == 2
        for one in pair:
            lookups.forget(one.request_id)
        lookups.forget("unknown")
    assert len(lookups) == 0
    assert lookups._memory == [None, None]


def test_a_long_text_takes_little_memory() -> None:
    """An index is not much larger than the tokens in Python's own list."""
    lookups = PromptLookups()
    lookups.find([request(range(32_000))], [1])
    (memory,) = lookups._memory
    assert memory is not None
    assert memory.nbytes < 1_000_000


def test_nobody_pays_who_may_not_copy() -> None:
    """Nothing is kept for a request until it is looked up."""
    lookups = PromptLookups()
    assert lookups.find([request([1, 2, 1, 2])], [0]) == [NO_MATCH]
    assert lookups.find([], []) == []
    assert len(lookups) == 0


def test_the_match_length_is_followed_back() -> None:
    """How long the match is, up to a bound, says how far to trust it."""
    passage = [*range(10, 18)]
    assert found([1, *passage, 2, *passage], 2).match_tokens == 8
    assert found([*range(100), 7, *range(100)], 1).match_tokens == MAX_MATCH_TOKENS


def test_a_step_costs_the_same_in_a_long_text() -> None:
    """A thousand tokens cost about as much after a hundred thousand others as after a thousand."""

    def seconds_at(length: int) -> float:
        growing, lookups = request([i * 7919 % 50021 for i in range(length)]), PromptLookups()
        lookups.find([growing], [4])
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            for i in range(300):
                growing.token_ids.append(i % 50)
                lookups.find([growing], [4])
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds_at(100_000) < 10 * seconds_at(1_000)
