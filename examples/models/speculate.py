"""Measures acceptance by running speculative decoding, plainly: no key-value cache, every step a full forward pass.

The server has its own, fast implementation; this one is short enough to be checked by reading, and judges the models
rather than the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from parallel import add_up
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Acceptance:
    """What the verification steps of one measurement accepted.

    `survival[j]` is the share of verification steps that accepted at least `j + 1` draft tokens.
    """

    steps: int
    survival: tuple[float, ...]

    @property
    def mean_length(self) -> float:
        """Tokens per verification step, the target's own token (correction or bonus) included."""
        return 1.0 + sum(self.survival)


def _distribution(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Token probabilities, float32 [..., vocabulary]: one-hot at temperature 0, so that greedy is a special case."""
    if temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return torch.softmax(logits.float() / temperature, dim=-1)


def _draw(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token per row: float [rows, vocabulary] -> int64 [rows]."""
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


@torch.no_grad()
def measure(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    k: int = 4,
    new_tokens: int = 96,
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[Acceptance, list[list[int]]]:
    """Speculates over all prompts at once; returns all workers' acceptance and this worker's generated tokens.

    Rejection sampling after Leviathan et al. (2211.17192): draft token x is kept with probability min(1, p(x)/q(x)),
    and the first one not kept is replaced by a draw from the normalised max(0, p - q). At temperature 0 both
    distributions are one-hot and this is the comparison of two argmaxes.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    limits = lengths + new_tokens
    # Right padding needs no mask: attention is causal, and nothing behind a row's own length is ever read.
    tokens = torch.zeros(rows, int(limits.max()) + k + 1, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    survived = [0] * k
    steps = 0
    active = torch.arange(rows)
    while active.numel():
        here = lengths[active]
        span = int(here.max()) + k
        work = tokens[active, : span + 1]
        index = torch.arange(active.numel())
        proposals: list[torch.Tensor] = []
        for position in range(k):
            logits = draft(input_ids=work[:, : span - k + position], use_cache=False).logits
            proposal = _distribution(logits[index, here + position - 1], temperature)
            work[index, here + position] = _draw(proposal, generator)
            proposals.append(proposal)
        logits = target(input_ids=work[:, :span], use_cache=False).logits
        going = torch.ones(active.numel(), dtype=torch.bool)
        accepted = torch.zeros(active.numel(), dtype=torch.long)
        for position in range(k + 1):
            truth = _distribution(logits[index, here + position - 1], temperature)
            own = truth
            keep = torch.zeros_like(going)
            if position < k:
                drafted = work[index, here + position]
                ratio = truth[index, drafted] / proposals[position][index, drafted]
                keep = going & (torch.rand(active.numel(), generator=generator) < ratio)
                survived[position] += int(keep.sum())
                residual = (truth - proposals[position]).clamp_min(0.0)
                # Equal distributions leave no residual, and then nothing is rejected either.
                own = torch.where(residual.sum(-1, keepdim=True) > 0, residual, truth)
            ends = going & ~keep
            work[index[ends], here[ends] + position] = _draw(own, generator)[ends]
            accepted += keep
            going = keep
        steps += active.numel()
        tokens[active, : span + 1] = work
        lengths[active] = here + accepted + 1
        active = active[lengths[active] < limits[active]]
    texts = [tokens[row, len(prompts[row]) : int(limits[row])].tolist() for row in range(rows)]
    counts = add_up(torch.tensor([steps, *survived])).tolist()
    return Acceptance(counts[0], tuple(count / counts[0] for count in counts[1:])), texts
