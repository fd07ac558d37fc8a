"""The client's own guess of the answer (OpenAI's `prediction`): drafted from where the answer stands in it.

While the answer follows the guess there is nothing to search. When it leaves it, the last few tokens are looked up in
the guess, as prompt lookup does in the text: nearest behind the place where it was left, for an edit deletes, inserts
or changes, and then goes on.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from smartspec.scheduling.prompt_lookup import MAX_MATCH_TOKENS, NO_MATCH, Match

LONGEST_MATCH = 4
"""Tokens that are compared to tell places apart that end alike."""
NUM_CANDIDATES = 32
"""Places looked at on either side of where the prediction was left: a pair like two line ends is everywhere."""


class Prediction:
    """Where an answer stands in *predicted*, token ids. *token_ids* is the growing text, held by reference; the answer
    begins at *start*."""

    def __init__(self, predicted: Sequence[int], token_ids: Sequence[int], start: int) -> None:
        self._predicted = predicted
        self._token_ids = token_ids
        self._start = start
        self._num_read = start
        # The next token is predicted to be that at `_position`, after a match of `_num_matched` tokens.
        self._position: int | None = 0
        self._num_matched = 0
        self._left_at = 0
        self._ends: dict[tuple[int, int], list[int]] | None = None

    def find(self, max_tokens: int) -> Match:
        """At most *max_tokens* tokens of the prediction to draft next, or NO_MATCH."""
        for index in range(self._num_read, len(self._token_ids)):
            self._read(index)
        self._num_read = len(self._token_ids)
        if self._position is None or self._position >= len(self._predicted):
            return NO_MATCH
        # Before the first token nothing has matched, and yet the client said how the answer begins: the least match.
        tokens = tuple(self._predicted[self._position : self._position + max_tokens])
        return Match(tokens, max(1, self._num_matched), "prediction")

    def _read(self, index: int) -> None:
        """Follow the token at *index* of the text."""
        token = self._token_ids[index]
        if (position := self._position) is not None:
            if position < len(self._predicted) and self._predicted[position] == token:
                self._position = position + 1
                self._num_matched = min(self._num_matched + 1, MAX_MATCH_TOKENS)
                return
            self._left_at, self._position, self._num_matched = position, None, 0
        self._align(index + 1)

    def _align(self, end: int) -> None:
        """Find the last tokens before *end* of the text in the prediction again."""
        if end - self._start < 2:
            return
        if self._ends is None:
            self._ends = _ends_of_pairs(self._predicted)
        found = self._ends.get((self._token_ids[end - 2], self._token_ids[end - 1]))
        if found is None:
            return
        behind = bisect_left(found, self._left_at)
        # Nearest behind first, then nearest before; of the longest matches the first.
        candidates = (
            *found[behind : behind + NUM_CANDIDATES],
            *reversed(found[max(0, behind - NUM_CANDIDATES) : behind]),
        )
        lengths = [self._match_length(end, position) for position in candidates]
        self._num_matched = max(lengths)
        self._position = candidates[lengths.index(self._num_matched)]

    def _match_length(self, end: int, position: int) -> int:
        """How many tokens before *end* of the text equal those before *position* of the prediction."""
        most = min(LONGEST_MATCH, end - self._start, position)
        for length in range(2, most):
            if self._token_ids[end - 1 - length] != self._predicted[position - 1 - length]:
                return length
        return most


def _ends_of_pairs(predicted: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """The positions after each pair of neighbours, rising."""
    ends: dict[tuple[int, int], list[int]] = {}
    for end, pair in enumerate(pairwise(predicted), 2):
        ends.setdefault(pair, []).append(end)
    return ends
