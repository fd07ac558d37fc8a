"""Prompt lookup: what followed the last time these tokens stood here.

Source: Saxena, "Prompt Lookup Decoding" (2023). Instead of searching the context at every step, an index is kept up
to date token by token, so that a step costs O(1) however long the context is.

All requests of a step are looked up by one compiled call. A forward leaves nothing of theirs in the processor's caches;
Python, which goes from object to object and waits for each, would take ten microseconds for every request.
"""

import os
from array import array
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from smartspec.native import carray, njit, pointer
from smartspec.scheduling.output import CopySource
from smartspec.scheduling.request import Request

SHORTEST_GRAM, LONGEST_GRAM = 2, 4
"""Of the last tokens, the longest that stood somewhere before is what counts. One token alone matches everywhere and
predicts nothing."""

MAX_MATCH_TOKENS = 16
"""How far back a match is followed: longer matches are no better evidence, and this bounds the work."""


class Match(Struct, frozen=True, gc=False):
    """`token_ids` followed an earlier occurrence of the sequence's last `match_tokens` tokens, in what `source` names:
    the text itself, the client's prediction, or (no occurrence at all) what a grammar lets follow alone."""

    token_ids: tuple[int, ...] = ()
    match_tokens: int = 0
    source: CopySource = "lookup"


NO_MATCH = Match()

ADDRESS, BITS, EARLIER = range(3)
"""Of a slot: the address of its memory, which has room for fewer than 2^bits tokens, and where the longest gram at the
text's end ended before. A place in a text is the number of tokens up to there."""
NOWHERE = 0
FEWEST_BITS = 8
UNITS = 7
"""A slot's memory in units of 2^bits int32: one of tokens, and two for each size's hash table, which is therefore half
empty at least. That is 7 KB at first, and 0.9 MB for 32,000 tokens."""


class PromptLookups:
    """Incremental n-gram indices over the token ids of requests, which are only ever appended to.

    Each request has a slot from when it is first looked up until it is forgotten. A slot's `_memory` holds the tokens,
    from 1 on, and then a hash table for each size of grams. A gram's entry is where it ended last; the gram itself can
    be read there.
    """

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._memory: list[NDArray[np.int32] | None] = []
        self._places = np.zeros((0, 3), dtype=np.int64)
        self._num_indexed: list[int] = []
        self._asked: list[Request] = []
        self._asked_slots: list[int] = []
        # Drawn, so that nobody can make up a text whose grams all collide, and stop the engine for seconds.
        self._multiplier = int.from_bytes(os.urandom(8), "big") | 1

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, requests: Sequence[Request], max_tokens: Sequence[int]) -> list[Match]:
        """So many tokens to copy for each of *requests*, or NO_MATCH. A copy that reaches the text's end repeats from
        its start. Where *max_tokens* is 0 nothing is looked up, nor indexed: that is caught up with when it is asked.
        """
        asked = list(compress(requests, max_tokens))
        if not asked:
            return [NO_MATCH] * len(max_tokens)
        texts = [request.token_ids for request in asked]
        slots = self._slots_of(asked)
        wanted = [most for most in max_tokens if most]
        while (found := self._ask(slots, texts, wanted)) is None:
            self._make_room(slots, texts)
        matches, at = [], 0
        for most in max_tokens:
            match = NO_MATCH
            if most:
                if length := found[at]:
                    match = Match(found[at + 1 : at + 1 + most], length)
                    at += most
                at += 1
            matches.append(match)
        return matches

    def forget(self, request_id: str) -> None:
        """Drop the index of a request that has ended."""
        slot = self._slots.pop(request_id, None)
        if slot is not None:
            self._clear(slot, None, 0)
            self._free.append(slot)
            self._asked = []

    def _slots_of(self, requests: list[Request]) -> list[int]:
        if requests != self._asked:  # mostly they are those of the step before
            self._asked_slots = [self._slot_of(request.request_id) for request in requests]
            self._asked = requests
        return self._asked_slots

    def _slot_of(self, request_id: str) -> int:
        slot = self._slots.get(request_id)
        if slot is None:
            if not self._free:
                self._free.append(len(self._memory))
                self._memory.append(None)
                self._num_indexed.append(0)
                self._places = np.concatenate((self._places, np.zeros((1, 3), dtype=np.int64)))
            slot = self._slots[request_id] = self._free.pop()
        return slot

    def _ask(self, slots: list[int], texts: list[list[int]], max_tokens: list[int]) -> tuple[int, ...] | None:
        """What `_find` finds in *texts*; None where one has outgrown its memory."""
        known, sizes, new = [self._num_indexed[slot] for slot in slots], [*map(len, texts)], []
        for text, num in zip(texts, known, strict=True):
            new += text[num:]
        # One array for all of it: to make another takes, with cold caches, as long as several requests.
        question = np.frombuffer(array("q", [*slots, *known, *sizes, *max_tokens, *new]), dtype=np.int64)
        found = np.empty(len(slots) + sum(max_tokens), dtype=np.int64)
        num_found = _find(self._places, self._multiplier, question, len(slots), found)
        if num_found < 0:
            return None
        for slot, size in zip(slots, sizes, strict=True):
            self._num_indexed[slot] = size
        return tuple(found[:num_found].tolist())

    def _make_room(self, slots: list[int], texts: list[list[int]]) -> None:
        """Give texts that have outgrown their memory twice as much, where they are indexed anew."""
        for slot, text in zip(slots, texts, strict=True):
            if len(text) >> self._places[slot, BITS]:
                bits = max(len(text).bit_length(), FEWEST_BITS)
                self._clear(slot, np.zeros(UNITS << bits, dtype=np.int32), bits)

    def _clear(self, slot: int, memory: NDArray[np.int32] | None, bits: int) -> None:
        self._memory[slot] = memory
        self._places[slot] = 0 if memory is None else memory.ctypes.data, bits, 0
        self._num_indexed[slot] = 0


@njit("int64(int32[::1], int64, int64, int64)", cache=True)
def _match_length(memory: Any, earlier: int, end: int, longest: int) -> int:
    """How many tokens up to `earlier` equal those up to `end`, *longest* at most."""
    length = 0
    while length < longest and memory[earlier - length] == memory[end - length]:
        length += 1
    return length


@njit("int64(int32[::1], int64, int64, int64, uint64)", cache=True)
def _enter(memory: Any, bits: int, end: int, size: int, multiplier: int) -> int:
    """Enter the gram of the *size* tokens up to `end` into the table of its size, and say where it ended before."""
    key = np.uint64(0)
    for i in range(end - size + 1, end + 1):
        key = (key + np.uint64(memory[i])) * np.uint64(multiplier)
    table = (1 + 2 * (size - SHORTEST_GRAM)) << bits
    at = np.int64(key >> np.uint64(63 - bits))  # the upper bits, which depend on all of the tokens'
    while True:
        earlier: Any = memory[table + at]
        if earlier == NOWHERE or _match_length(memory, earlier, end, size) == size:
            memory[table + at] = end
            return int(earlier)
        at = (at + 1) & ((2 << bits) - 1)


@njit("int64(int32[::1], int64, int64, uint64)", cache=True)
def _index(memory: Any, bits: int, end: int, multiplier: int) -> int:
    """Enter the grams up to `end`, and say where the longest ended that had been there before."""
    longest = NOWHERE
    for size in range(SHORTEST_GRAM, min(LONGEST_GRAM, end) + 1):
        earlier = _enter(memory, bits, end, size, multiplier)
        if earlier != NOWHERE:
            longest = earlier
    return longest


@njit("int64(int64[:,::1], uint64, int64[::1], int64, int64[::1])", cache=True)
def _find(places: Any, multiplier: int, question: Any, num: int, found: Any) -> int:
    """Answer the `question` of *num* requests: their slots, how many tokens of each are indexed already, how many it
    has, how many to copy; then the new tokens of all. To `found` go, for each, the length of its match and, unless that
    is 0, the copied tokens. Returns how many numbers that were; -1, with nothing done, where memory is too small."""
    slots, known, sizes, max_tokens = question[: 4 * num].reshape(4, num)
    for r in range(num):
        if sizes[r] >> places[slots[r], BITS]:
            return -1
    new, num_found = 4 * num, 0
    for r in range(num):
        place, end = places[slots[r]], sizes[r]
        memory = carray(pointer(place[ADDRESS]), UNITS << place[BITS], np.int32)
        for last in range(known[r] + 1, end + 1):
            memory[last] = question[new]
            place[EARLIER] = _index(memory, place[BITS], last, multiplier)
            new += 1
        earlier = place[EARLIER]
        found[num_found] = _match_length(memory, earlier, end, min(earlier, MAX_MATCH_TOKENS))
        num_found += 1
        if earlier != NOWHERE:
            for i in range(max_tokens[r]):
                found[num_found] = memory[earlier + 1 + i % (end - earlier)]
                num_found += 1
    return num_found
