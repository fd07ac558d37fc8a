"""Log probabilities under the model itself: before bias, penalties, rules, temperature and filters.

They are the same bits whether a token was speculated or not, wherever a row's logits are (`row_invariance`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from smartspec.scheduling.request import TokenLogprob

LEAST_LOGPROB = -9999.0
"""Stands for what is impossible: JSON has no infinity."""

_MOST_ROWS = 64
"""Normalised at once: a row of a large vocabulary is half a megabyte, and a prompt has many."""


def score(logits: Tensor, token_ids: Sequence[int], nums_top: Sequence[int]) -> list[TokenLogprob]:
    """What each row of *logits* [rows, vocab] says of one token, and of the `nums_top[row]` most probable ones."""
    scored: list[TokenLogprob] = []
    for begin in range(0, len(token_ids), _MOST_ROWS):
        rows = slice(begin, begin + _MOST_ROWS)
        scored += _score(logits[rows], token_ids[rows], nums_top[rows])
    return scored


def _score(logits: Tensor, token_ids: Sequence[int], nums_top: Sequence[int]) -> list[TokenLogprob]:
    log_probs = torch.log_softmax(logits, dim=-1).clamp_min_(LEAST_LOGPROB)
    chosen = log_probs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks = (log_probs > chosen).sum(dim=1).tolist()
    top = log_probs.topk(min(max(nums_top), logits.shape[1]), dim=1)
    tops = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        TokenLogprob(token_id, logprob, rank + 1, tuple(zip(ids[:num], values[:num], strict=True)))
        for token_id, logprob, rank, num, (ids, values) in zip(
            token_ids, chosen[:, 0].tolist(), ranks, nums_top, tops, strict=True
        )
    ]
