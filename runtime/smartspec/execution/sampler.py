"""From logits to the distribution a token is drawn from: temperature, top-k, top-p and min-p.

The same processing applies to the target's rows before acceptance and to the draft's rows before drafting. Every
operation works on each row alone and gives the same bits whatever else is in the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smartspec.scheduling.request import SamplingParams

_MIN_TEMPERATURE = 1e-6
"""Below it, logits over temperature could overflow; the most probable token already has all the mass."""

_FIRST_WIDTH = 64
"""How many of the most probable tokens are sorted at first; enough for most top-k and top-p."""

_SORTED_SHARE = 32
"""Selecting more than one in so many tokens takes longer than sorting them all."""


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """The sampling parameters of a batch of rows, as tensors [rows].

    `ranked` and `filtered` index the rows that need sorting, and those with any filter at all. `top_k` 0 is written as
    the largest integer and `top_p` 1 as infinity: both filter nothing.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    log_min_p: Tensor
    filtered: Tensor | None
    ranked: Tensor | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str | None = None) -> "SamplingTensors":
        """Parameters row by row; *params* names one entry per row of logits."""
        ranked = [i for i, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0]
        filtered = [i for i, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0]
        return cls(
            temperature=torch.tensor([max(p.temperature, _MIN_TEMPERATURE) for p in params], device=device),
            top_k=torch.tensor([p.top_k if p.top_k > 0 else 1 << 62 for p in params], device=device),
            top_p=torch.tensor(
                [p.top_p if p.top_p < 1.0 else math.inf for p in params], dtype=torch.float64, device=device
            ),
            log_min_p=torch.tensor([math.log(p.min_p) if p.min_p > 0.0 else -math.inf for p in params], device=device),
            filtered=torch.tensor(filtered, device=device) if filtered else None,
            ranked=torch.tensor(ranked, device=device) if ranked else None,
        )


def process_logits(logits: Tensor, params: SamplingTensors) -> Tensor:
    """The log probabilities each row is sampled from: float32 [rows, vocab], normalised, -inf for what is filtered out.

    The order is temperature, top-k, top-p over what top-k left, min-p (as in transformers). Tokens as probable as the
    last one kept are kept too, so that the outcome never depends on a sort's order.
    """
    log_probs = torch.log_softmax(logits / params.temperature[:, None], dim=-1)
    if params.filtered is None:
        return log_probs
    thresholds = log_probs.amax(dim=-1) + params.log_min_p
    if params.ranked is not None:
        ranks = _rank_thresholds(log_probs, params.ranked, params.top_k, params.top_p)
        thresholds[params.ranked] = torch.maximum(thresholds[params.ranked], ranks)
    # Rows without a filter are left out: normalising them once more would change their last bits with the batch.
    kept = log_probs[params.filtered]
    kept = kept.masked_fill_(kept < thresholds[params.filtered, None], -torch.inf)
    log_probs[params.filtered] = torch.log_softmax(kept, dim=-1)
    return log_probs


def _rank_thresholds(log_probs: Tensor, rows: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The least log probability that top-k and top-p keep, for each of *rows* (indices of *log_probs*).

    Only the head of a row is sorted, and more of it when the head does not decide: sums run from the most probable
    token on, so the width that decided does not show in the result.
    """
    vocab = log_probs.shape[1]
    thresholds = log_probs.new_empty(len(rows))
    pending = torch.arange(len(rows), device=rows.device)
    values, k, p = log_probs[rows], top_k[rows], top_p[rows]
    width, is_sorted = min(_FIRST_WIDTH, vocab), False
    while True:
        if not is_sorted and vocab <= _SORTED_SHARE * width:
            values, is_sorted = _sort_falling(values), True
        head = values[:, :width] if is_sorted else values.topk(width, dim=1).values
        probs = head.double().exp_()
        mass = probs.cumsum(dim=1)
        # Top-p is a share of what top-k left: all of it (1) where there is no top-k.
        total = torch.where(k <= width, mass.gather(1, k.clamp_max(width)[:, None] - 1)[:, 0], 1.0)
        count = torch.minimum((mass - probs < (p * total)[:, None]).sum(dim=1), k).clamp_(1, width)
        thresholds[pending] = head.gather(1, count[:, None] - 1)[:, 0]
        if width == vocab:
            return thresholds
        undecided = ~((k <= width) | ((k > vocab) & (mass[:, -1] >= p)))
        pending = pending[undecided]
        if not len(pending):
            return thresholds
        values, k, p = values[undecided], k[undecided], p[undecided]
        width = min(width * 4, vocab)


def _sort_falling(values: Tensor) -> Tensor:
    """Each row sorted, the largest value first.

    On a CPU numpy's vectorised sort of values alone is several times faster than torch's, which moves indices as well.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=1)).flip(1)
    return values.sort(dim=1, descending=True).values
