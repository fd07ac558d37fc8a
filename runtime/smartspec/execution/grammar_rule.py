"""The rule that keeps one text within a grammar: which tokens may come next, by llguidance's matcher.

It follows the committed text, and speculated tokens beyond it as far as it is asked; going back costs a rollback, and a
position that was asked about once (by the draft) is answered from memory the second time (for the target).
"""

from collections.abc import Sequence

import llguidance
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smartspec.scheduling.request import LogitRule, RuledText

Bits = NDArray[np.uint8]
"""One bit a token, set where the token is allowed; eight tokens a byte, the first in the lowest bit."""

_BIAS: NDArray[np.float32] = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.float32(0),
    np.float32(-np.inf),
)
"""What is added to the logits of eight tokens whose bits are one byte [256, 8]: 0 where allowed, -inf elsewhere."""


class GrammarRule(LogitRule):
    """Bans every token that the grammar does not allow next.

    Where the text may end, all *eos_token_ids* may follow; after one of them, nothing else. `failure` says why no more
    can be told, if so: the text must then be given up, for it is not complete.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._vocab_size = vocab_size
        self.failure: str | None = None
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids
        self._num_committed = 0
        self._is_over = False
        # Speculated tokens that the matcher has been taken through; it is not given what follows an end of text.
        self._path: list[int] = []
        self._num_fed = 0
        self._allowed: dict[int, Bits] = {}  # by the number of speculated tokens before the row

    def adjust(self, logits: Tensor, text: RuledText, ahead: Sequence[int], first: int) -> None:
        """Write -inf for what must not follow; rows behind a forbidden token are left alone."""
        self._commit(text)
        for row, depth in enumerate(range(first, first + len(logits))):
            if self._advance(ahead[:depth]) < depth:
                return
            bias = torch.from_numpy(_BIAS[self._allowed_at(depth)].reshape(-1)[: self._vocab_size])
            width = min(len(bias), logits.shape[1])
            # A draft may know none of the tokens that are left: what it draws is rejected then, whatever it is.
            if width == self._vocab_size or bool((bias[:width] == 0).any()):
                logits[row, :width].add_(bias[:width].to(logits.device))
                logits[row, width:] = -torch.inf

    def permits(self, text: RuledText, ahead: Sequence[int]) -> int:
        """How many of the tokens *ahead* may follow *text*, one after the other."""
        self._commit(text)
        return self._advance(ahead)

    def forces(self, text: RuledText) -> Sequence[int]:
        """The tokens that must spell what follows *text*, as far as there is only one way to go on."""
        self._commit(text)
        self._cut(0)
        if self._is_over or self.failure is not None:
            return ()
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    def _commit(self, text: RuledText) -> None:
        """Follow what was committed since the last time."""
        new = text.output_from(self._num_committed)
        if not new:
            return
        if self._advance(new) < len(new):
            self._fail("a token that the grammar forbids was committed")
        self._is_over = self._is_over or not self._eos_token_ids.isdisjoint(new)
        self._num_committed += len(new)
        self._num_fed = max(0, self._num_fed - len(new))
        del self._path[: len(new)]
        self._allowed = {depth - len(new): row for depth, row in self._allowed.items() if depth >= len(new)}

    def _advance(self, tokens: Sequence[int]) -> int:
        """Take the matcher along *tokens* (or leave it where it is, beyond them); how many of them are allowed."""
        shared = 0
        for known, token in zip(self._path, tokens, strict=False):
            if known != token:
                break
            shared += 1
        if shared < len(tokens):
            self._cut(shared)
            while shared < len(tokens) and self._feed(tokens[shared]):
                shared += 1
        return shared

    def _feed(self, token: int) -> bool:
        """Take *token* if it is allowed."""
        if self._has_ended:
            allowed = token in self._eos_token_ids
        elif token in self._eos_token_ids:
            allowed = self._matcher.is_accepting()
        else:
            allowed = self._matcher.try_consume_tokens([token]) == 1
            self._num_fed += allowed
            if not allowed and self._matcher.is_error():
                self._fail(self._matcher.get_error())
        if allowed:
            self._path.append(token)
        return allowed

    @property
    def _has_ended(self) -> bool:
        return self._is_over or self._num_fed < len(self._path)

    def _cut(self, depth: int) -> None:
        """Go back to where only *depth* speculated tokens have been taken."""
        if len(self._path) > depth:
            if self._num_fed > depth:
                self._matcher.rollback(self._num_fed - depth)
                self._num_fed = depth
            del self._path[depth:]
            self._allowed = {known: row for known, row in self._allowed.items() if known <= depth}

    def _allowed_at(self, depth: int) -> Bits:
        """What may follow the first *depth* tokens of the path."""
        allowed = self._allowed.get(depth)
        if allowed is None:
            self._cut(depth)
            allowed = self._allowed[depth] = self._compute()
        return allowed

    def _compute(self) -> Bits:
        allowed: Bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8).copy()
        if self._matcher.is_error():
            self._fail(self._matcher.get_error())
        is_over = self._has_ended or self.failure is not None
        if is_over:
            allowed[:] = 0
        may_end = is_over or self._matcher.is_accepting()
        for token in self._eos_token_ids:
            if token < self._vocab_size:
                bit = 1 << token % 8
                allowed[token // 8] = allowed[token // 8] & (255 - bit) | bit * may_end
        return allowed

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason.partition("\n")[0]
