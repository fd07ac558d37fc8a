"""Toy language models whose next token depends on the last one only: exact laws to hold the real sampling code to."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from smartspec.execution.batch import Segment
from smartspec.execution.logit_rules import LogitRules
from smartspec.execution.proposers import Drafts, Proposer
from smartspec.execution.verifier import VerificationRow, verify
from smartspec.policy.types import Decision, Verifier
from smartspec.policy.types import Proposer as ProposerName
from smartspec.scheduling.output import Proposal, ScheduledRequest, SchedulerOutput
from smartspec.scheduling.request import LogitRule, RuledText, SamplingParams

Floats = NDArray[np.float64]
Tamper = Callable[[SchedulerOutput, Drafts], Drafts]


class MarkovModel:
    """Stands where `PagedModel` does: the logits after a token are that token's row of *table* [vocab, vocab]."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.calls: list[list[Segment]] = []

    @classmethod
    def random(cls, vocab: int, seed: int, scale: float = 1.5) -> "MarkovModel":
        """Normal logits of standard deviation *scale*."""
        return cls(torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed)) * scale)

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """As `PagedModel.forward`, without a cache."""
        self.calls.append(list(segments))
        rows = [t for s in segments for t in s.token_ids[len(s.token_ids) - s.num_logits :]]
        return self.table[torch.tensor(rows, dtype=torch.int64)]


@dataclass(frozen=True)
class ToyRequest:
    """What is asked of one request; `lengths[i]` is its k in step i (the last one repeats)."""

    seed: int
    sampling: SamplingParams = SamplingParams()
    verifier: Verifier = "rejection"
    proposer: ProposerName = "draft"
    lengths: tuple[int, ...] = (2,)
    prompt: tuple[int, ...] = (0,)
    rule: LogitRule | None = None


def generate(
    target: MarkovModel,
    draft: MarkovModel,
    requests: Sequence[ToyRequest],
    num_tokens: int,
    *,
    eos_token_ids: frozenset[int] = frozenset(),
    tamper: Tamper | None = None,
) -> list[tuple[int, ...]]:
    """Speculate by the real proposer and verifier until each has *num_tokens* tokens; *tamper* may plant a bug."""
    proposer = Proposer(draft, vocab_size=len(target.table), eos_token_ids=eos_token_ids)
    texts = [list(r.prompt) for r in requests]
    ruled = [RuledText.of(r.sampling, t, len(r.prompt), r.rule) for r, t in zip(requests, texts, strict=True)]
    rules = LogitRules(eos_token_ids)
    step = 0
    while active := [i for i, r in enumerate(requests) if len(texts[i]) < len(r.prompt) + num_tokens]:
        plan = SchedulerOutput(tuple(_schedule(i, requests[i], texts[i], ruled[i], step) for i in active), Decision())
        drafts = proposer.propose(plan)
        if tamper is not None:
            drafts = tamper(plan, drafts)
        rows = [_row(r, drafts) for r in plan.scheduled]
        inputs = [t for i, row in zip(active, rows, strict=True) for t in (texts[i][-1], *_proposed(row))]
        for i, sampled in zip(active, verify(target.table[inputs], rows, rules), strict=True):
            texts[i] += sampled.token_ids
        step += 1
    return [tuple(t[len(r.prompt) : len(r.prompt) + num_tokens]) for r, t in zip(requests, texts, strict=True)]


def fit(texts: Sequence[Sequence[int]], law: Floats) -> float:
    """The chi-square p-value of *texts* under *law*, one axis per token; -1 if an impossible text occurred."""
    counts = np.zeros(law.shape)
    np.add.at(counts, tuple(np.array(texts).T), 1)
    if counts[law == 0].any():
        return -1.0
    observed, expected = [0.0], [0.0]
    for probability, count in sorted(zip(law.ravel().tolist(), counts.ravel().tolist(), strict=True)):
        if expected[-1] >= 5:  # the usual least expectation of a cell; rarer ones are pooled
            observed.append(0.0)
            expected.append(0.0)
        observed[-1] += count
        expected[-1] += probability * len(texts)
    return float(stats.chisquare(observed, expected).pvalue)


def law_of(table: Tensor, sampling: SamplingParams, start: int, num_tokens: int, num_banned: int = 0) -> Floats:
    """The exact joint law of the next *num_tokens* tokens, written down independently of the code under test.

    The first *num_banned* of them may not be a stop token.
    """
    law = np.ones(())
    vocab = len(table)
    for position in range(num_tokens):
        banned = sampling.stop_token_ids if position < num_banned else frozenset()
        matrix = np.stack([probabilities(row, sampling, banned) for row in table.double().numpy()])
        law = matrix[start] if position == 0 else law[..., :, None] * matrix
    assert law.shape == (vocab,) * num_tokens
    return law


def adjusted(logits: Floats, sampling: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Floats:
    """One row of logits as OpenAI's, vLLM's and transformers' definitions adjust it, by the plainest means.

    `min_tokens` rules out `stop_token_ids` alone: give the end of text as one of them.
    """
    row = logits.copy()
    for token, bias in sampling.logit_bias:
        row[token] += bias
    for token in {*prompt, *output}:
        penalty = sampling.repetition_penalty
        row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    for token, count in Counter(output).items():
        row[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    if sampling.allowed_token_ids:
        row[[token for token in range(len(row)) if token not in sampling.allowed_token_ids]] = -np.inf
    for *before, last in sampling.bad_words:
        if list(output[len(output) - len(before) :]) == before and len(before) <= len(output):
            row[last] = -np.inf
    if len(output) < sampling.min_tokens:
        row[list(sampling.stop_token_ids)] = -np.inf
    return row


def probabilities(logits: Floats, sampling: SamplingParams, banned: frozenset[int] = frozenset()) -> Floats:
    """One row's distribution by the plainest means."""
    logits = logits.copy()
    logits[list(banned)] = -np.inf
    probs = np.exp((logits - logits.max()) / sampling.temperature)
    probs /= probs.sum()
    order = np.argsort(-probs)
    if sampling.top_k:
        probs[order[sampling.top_k :]] = 0.0
        probs /= probs.sum()
    kept = np.cumsum(probs[order]) - probs[order] < sampling.top_p
    probs[order[~kept]] = 0.0
    probs[probs < sampling.min_p * probs.max()] = 0.0
    return probs / probs.sum()


def with_lengths(drafts: Drafts, lengths: dict[str, int]) -> Drafts:
    """The same drafts, some proposals cut to the given lengths; with length 0 there is none."""
    proposals, probs = dict(drafts.proposals), dict(drafts.draft_probs)
    for key, length in lengths.items():
        proposal, rows = proposals.pop(key), probs.pop(key)
        if length:
            proposals[key], probs[key] = Proposal.chain(proposal.token_ids[:length]), rows[:length]
    return replace(drafts, proposals=proposals, draft_probs=probs)


def _schedule(index: int, request: ToyRequest, text: list[int], ruled: RuledText | None, step: int) -> ScheduledRequest:
    """One request's part of a plan. A lookup guesses that the text goes on as 1, 2, 3 ... from its last token."""
    length = request.lengths[min(step, len(request.lengths) - 1)]
    return ScheduledRequest(
        request_id=str(index),
        token_ids=text[-1:],
        start=len(text) - 1,
        samples=True,
        block_table=(),
        sampling=request.sampling,
        noise_seed=request.seed,
        verifier=request.verifier,
        num_output_tokens=len(text) - len(request.prompt),
        proposer=request.proposer if length else None,
        num_speculative_tokens=length,
        lookup_tokens=tuple((text[-1] + 1 + j) % 4 for j in range(length)),
        ruled=ruled,
        draft_start=len(text) - 1,
        catchup_token_ids=text[-1:],
    )


def _row(request: ScheduledRequest, drafts: Drafts) -> VerificationRow:
    return VerificationRow(
        request.sampling,
        request.noise_seed,
        request.start + 1,
        request.verifier,
        drafts.proposals.get(request.request_id),
        drafts.draft_probs.get(request.request_id),
        request.ruled,
    )


def _proposed(row: VerificationRow) -> tuple[int, ...]:
    return () if row.proposal is None else row.proposal.token_ids
