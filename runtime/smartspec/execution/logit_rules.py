"""Adjusted logits: what a request asks of them is done here, for the target's rows and for the draft's alike.

In this order: `logit_bias` is added; `repetition_penalty` divides positive and multiplies negative logits of tokens in
prompt or output; `frequency_penalty` (times the count) and `presence_penalty` are subtracted from those of tokens in
the output; then comes the request's own rule, if it has one; then all but `allowed_token_ids` is banned, and what would
complete one of `bad_words`; last, what would end the text before `min_tokens`. (Bias, penalties and bans as in vLLM's
sampler; repetition as in transformers, too.) Temperature and filters follow. A ban that would leave no token is lifted
for that row: a grammar is never broken, and a row without any token would fail the step of all.

Each row is adjusted for its own text: the committed one and the speculated tokens before the row. So it does not
matter to a token at which place of a proposal it is verified, or whether it was proposed at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smartspec.execution.token_bans import TokenBans, ban
from smartspec.scheduling.request import RuledText

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one request's logits, from *row* on: the first for the token after `text` and `ahead[:first]`, the last
    for the token after `text` and all of `ahead`."""

    row: int
    text: RuledText
    ahead: Sequence[int] = ()
    first: int = 0

    @property
    def num_rows(self) -> int:
        """How many rows these are."""
        return len(self.ahead) + 1 - self.first


class LogitRules:
    """Adjusts logits; what it keeps between calls, for as long as a text lives, are counts of its committed tokens and
    its parameters in a form that is quick to apply."""

    def __init__(self, eos_token_ids: frozenset[int] = frozenset()) -> None:
        self._eos_token_ids = eos_token_ids
        self._counts: WeakKeyDictionary[RuledText, _Edits] = WeakKeyDictionary()
        self._bans: WeakKeyDictionary[RuledText, TokenBans] = WeakKeyDictionary()

    def adjust(self, logits: Tensor, spans: Sequence[Span]) -> None:
        """Write to the rows of *logits* [rows, vocab] that *spans* name; no other row is touched, or costs anything."""
        if not spans:
            return
        self._edit(logits, [span for span in spans if span.text.sampling.edits_logits])
        for span in spans:
            rows = logits[span.row : span.row + span.num_rows]
            if span.text.rule is not None:
                span.text.rule.adjust(rows, span.text, span.ahead, span.first)
            if span.text.sampling.bans_tokens:
                self._bans_of(span.text).adjust(rows, span.text, span.ahead, span.first)
        self._ban_endings(logits, spans)

    def _edit(self, logits: Tensor, spans: Sequence[Span]) -> None:
        """Bias and penalties: all edits of all rows in one gather and one scatter."""
        if not spans:
            return
        edits = [edit for span in spans for edit in self._edits(span.text).of(span)]
        rows = np.concatenate([np.full(len(tokens), row) for row, tokens, *_ in edits])
        tokens, bias, factor, minus = (np.concatenate([edit[i] for edit in edits]) for i in (1, 2, 3, 4))
        if len(tokens) and tokens.max() >= logits.shape[1]:  # a draft may know fewer tokens than the text has
            known = tokens < logits.shape[1]
            rows, tokens, bias, factor, minus = (part[known] for part in (rows, tokens, bias, factor, minus))
        device = logits.device
        index = torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)
        values = logits[index] + torch.from_numpy(bias).to(device)
        scale = torch.from_numpy(factor).to(device)
        values = torch.where(values > 0, values / scale, values * scale)
        logits[index] = values - torch.from_numpy(minus).to(device)

    def _edits(self, text: RuledText) -> "_Edits":
        edits = self._counts.get(text)
        if edits is None:
            edits = self._counts[text] = _Edits(text)
        return edits

    def _bans_of(self, text: RuledText) -> TokenBans:
        bans = self._bans.get(text)
        if bans is None:
            bans = self._bans[text] = TokenBans(text.sampling)
        return bans

    def _ban_endings(self, logits: Tensor, spans: Sequence[Span]) -> None:
        """-inf for each token that would end its text before `min_tokens`, unless nothing else may follow."""
        rows: list[int] = []
        tokens: list[int] = []
        for span in spans:
            sampling, num_output = span.text.sampling, span.text.num_output_tokens + span.first
            short = min(sampling.min_tokens - num_output, span.num_rows)
            if short <= 0:
                continue
            endings = sampling.stop_token_ids if sampling.ignore_eos else sampling.stop_token_ids | self._eos_token_ids
            known = [token for token in endings if 0 <= token < logits.shape[1]]
            for row in range(span.row, span.row + short):
                if span.text.rule is not None or sampling.bans_tokens:
                    ban(logits[row], known)
                else:
                    rows += [row] * len(known)
                    tokens += known
        if rows:
            index = torch.tensor(rows, device=logits.device), torch.tensor(tokens, device=logits.device)
            logits[index] = -torch.inf


class _Edits:
    """The tokens of one text whose logits change, side by side, and by what: a slot for each distinct token.

    `_factor` is the repetition penalty of tokens in prompt or output, `_minus` what frequency and presence take away.
    """

    def __init__(self, text: RuledText) -> None:
        sampling = text.sampling
        self._repetition, self._frequency = sampling.repetition_penalty, sampling.frequency_penalty
        self._presence = sampling.presence_penalty
        self._penalises = sampling.penalises
        prompt = set(text.token_ids[: text.num_prompt_tokens]) if self._repetition != 1.0 else set()
        tokens = [*prompt, *(token for token, _ in sampling.logit_bias if token not in prompt)]
        self._slots = {token: slot for slot, token in enumerate(tokens)}
        self._prompt_slots = len(prompt)
        self._tokens: Ints = np.array(tokens, dtype=np.int64)
        self._counts: Ints = np.zeros(len(tokens), dtype=np.int64)
        self._bias: Floats = np.zeros(len(tokens), dtype=np.float32)
        self._factor: Floats = np.ones(len(tokens), dtype=np.float32)
        self._minus: Floats = np.zeros(len(tokens), dtype=np.float32)
        self._factor[: self._prompt_slots] = self._repetition
        for token, bias in sampling.logit_bias:
            self._bias[self._slots[token]] = bias
        self._num_counted = 0

    def of(self, span: Span) -> list[tuple[int, Ints, Floats, Floats, Floats]]:
        """Row, tokens, bias, factor and minus of each row of *span*."""
        if not self._penalises:
            return [(span.row + i, self._tokens, self._bias, self._factor, self._minus) for i in range(span.num_rows)]
        for token in span.text.output_from(self._num_counted):
            self._count(token, 1)
        self._num_counted = span.text.num_output_tokens
        for token in span.ahead[: span.first]:
            self._count(token, 1)
        edits = [self._row(span.row)]
        for row, token in enumerate(span.ahead[span.first :], span.row + 1):
            self._count(token, 1)
            edits.append(self._row(row))
        for token in span.ahead:
            self._count(token, -1)
        return edits

    def _row(self, row: int) -> tuple[int, Ints, Floats, Floats, Floats]:
        used = slice(len(self._slots))
        return row, self._tokens[used], self._bias[used], self._factor[used].copy(), self._minus[used].copy()

    def _count(self, token: int, change: int) -> None:
        """One more, or one less, of *token* in the output. A slot stays once it is there: without a count it edits
        nothing."""
        slot = self._slots.get(token)
        if slot is None:
            slot = self._slots[token] = len(self._slots)
            if slot == len(self._tokens):
                self._grow()
            self._tokens[slot] = token
        count = self._counts[slot] = self._counts[slot] + change
        is_seen = count > 0 or slot < self._prompt_slots
        self._factor[slot] = self._repetition if is_seen else 1.0
        self._minus[slot] = self._frequency * count + self._presence if count > 0 else 0.0

    def _grow(self) -> None:
        """Room for as many slots again. The arrays are new ones: rows handed out keep theirs."""
        more = max(64, len(self._tokens))
        self._tokens = np.concatenate([self._tokens, np.zeros(more, dtype=np.int64)])
        self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.int64)])
        self._bias = np.concatenate([self._bias, np.zeros(more, dtype=np.float32)])
        self._factor = np.concatenate([self._factor, np.ones(more, dtype=np.float32)])
        self._minus = np.concatenate([self._minus, np.zeros(more, dtype=np.float32)])
