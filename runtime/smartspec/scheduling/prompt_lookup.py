"""Prompt lookup: what followed the last time these tokens stood here.

Source: Saxena, "Prompt Lookup Decoding" (2023). Instead of searching the context at every step, an index is kept up
to date token by token, so that a step costs O(1) however long the context is.
"""

from collections.abc import Sequence

from msgspec import Struct

from smartspec.scheduling.output import CopySource

NGRAM_SIZES = (4, 3, 2)
"""Tried longest first. One token alone matches everywhere and predicts nothing."""

MAX_MATCH_TOKENS = 16
"""How far back a match is followed: longer matches are no better evidence, and this bounds the work."""


class Match(Struct, frozen=True, gc=False):
    """`token_ids` followed an earlier occurrence of the sequence's last `match_tokens` tokens, in what `source` names:
    the text itself, the client's prediction, or (no occurrence at all) what a grammar lets follow alone."""

    token_ids: tuple[int, ...] = ()
    match_tokens: int = 0
    source: CopySource = "lookup"


NO_MATCH = Match()


class PromptLookup:
    """An incremental n-gram index over *token_ids*, which is held by reference and only ever appended to."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._num_indexed = 0
        # A gram's key is a hash, not the tokens: a third of the memory. A collision is found out by `_match_length`.
        self._next_position: dict[int, int] = {}
        self._candidates: tuple[int, ...] = ()

    def find(self, max_tokens: int) -> Match:
        """*max_tokens* tokens to copy, or NO_MATCH. A copy that reaches the sequence's end repeats from its start."""
        self._index_new_tokens()
        for position in self._candidates:
            length = self._match_length(position)
            if length >= NGRAM_SIZES[-1]:
                return Match(self._continuation(position, max_tokens), length)
        return NO_MATCH

    def _index_new_tokens(self) -> None:
        tokens, index = self._token_ids, self._next_position
        for end in range(self._num_indexed + 1, len(tokens) + 1):
            found = []
            for size in NGRAM_SIZES:
                if end >= size:
                    key = hash(tuple(tokens[end - size : end]))
                    # Look before writing: the gram's own entry must not be found as its earlier occurrence.
                    if key in index:
                        found.append(index[key])
                    index[key] = end
            self._candidates = tuple(found)
        self._num_indexed = len(tokens)

    def _match_length(self, position: int) -> int:
        tokens, end = self._token_ids, len(self._token_ids)
        length, longest = 0, min(position, MAX_MATCH_TOKENS)
        while length < longest and tokens[position - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length

    def _continuation(self, position: int, max_tokens: int) -> tuple[int, ...]:
        copied = tuple(self._token_ids[position : position + max_tokens])
        period = len(self._token_ids) - position
        while len(copied) < max_tokens:
            copied += copied[: min(period, max_tokens - len(copied))]
        return copied
