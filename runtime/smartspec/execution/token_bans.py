"""Tokens that a request rules out: all but those it allows, and what would complete one of its bad words.

The prefix rule of vLLM's sampler (`apply_bad_words`): the last token of a word is banned where the output, speculated
tokens included, ends with the tokens before it. So a row depends on the text before it alone, and a word is kept out of
a proposal as surely as out of a step of one token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from smartspec.scheduling.request import RuledText, SamplingParams


class TokenBans:
    """The bans of one request, looked up by the token before a row: most rows have few words to compare, or none."""

    def __init__(self, sampling: SamplingParams) -> None:
        self._allowed = torch.tensor(sampling.allowed_token_ids, dtype=torch.int64)
        self._always = [word[0] for word in sampling.bad_words if len(word) == 1]
        self._after: dict[int, list[tuple[list[int], int]]] = {}
        for word in sampling.bad_words:
            if len(word) > 1:
                self._after.setdefault(word[-2], []).append((list(word[:-1]), word[-1]))
        self._reach = max((len(word) - 1 for word in sampling.bad_words), default=0)

    def adjust(self, logits: Tensor, text: RuledText, ahead: Sequence[int], first: int) -> None:
        """Write -inf to rows of *logits* [len(ahead) + 1 - first, vocab], the first of which is for the token after
        `text` and `ahead[:first]`. Where nothing would be left, a ban is lifted."""
        recent = list(text.output_from(max(0, text.num_output_tokens - self._reach)))
        num_recent = len(recent) + first
        recent += ahead
        for row in range(len(logits)):
            keep(logits[row], self._allowed)
            ban(logits[row], self._completing(recent[: num_recent + row]))

    def _completing(self, recent: list[int]) -> list[int]:
        """The tokens that would complete a bad word after an output that ends with *recent*."""
        words = self._after.get(recent[-1], ()) if recent else ()
        return self._always + [last for before, last in words if recent[-len(before) :] == before]


def ban(row: Tensor, token_ids: Sequence[int]) -> None:
    """-inf for *token_ids* in *row* [vocab], as far as it has them; nothing where no other token would be left."""
    known = [token for token in token_ids if 0 <= token < len(row)]
    if known:
        index = torch.tensor(known, device=row.device)
        before = row[index]
        row[index] = -torch.inf
        if not bool(row.amax() > -torch.inf):
            row[index] = before


def keep(row: Tensor, token_ids: Tensor) -> None:
    """-inf for all but *token_ids* in *row* [vocab]; nothing where none of them is left, or none is named."""
    index = token_ids[token_ids < len(row)].to(row.device)
    kept = row[index]
    if len(kept) and bool(kept.amax() > -torch.inf):
        row.fill_(-torch.inf)
        row[index] = kept
