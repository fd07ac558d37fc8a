"""One step on the target: the plan's rows and the drafted nodes in a single forward, then verification."""

from collections.abc import Sequence
from typing import Protocol

import torch

from smartspec.execution.batch import Segment
from smartspec.execution.logit_rules import LogitRules
from smartspec.execution.logprobs import score
from smartspec.execution.proposers import Drafts
from smartspec.execution.verifier import VerificationRow, verify
from smartspec.policy.types import StepFeatures, StepSeconds
from smartspec.scheduling.output import (
    ModelRunnerOutput,
    Proposal,
    SampledTokens,
    ScheduledRequest,
    SchedulerOutput,
)
from smartspec.scheduling.request import TokenLogprob


class TargetModel(Protocol):
    """The part of `PagedModel` that a step needs."""

    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """float32 logits [sum(num_logits), vocab], rows in segment order; keys and values of all rows are stored."""


class ModelRunner:
    """Executes plans on *target*; torch ends here, and ints come out."""

    def __init__(self, target: TargetModel, *, eos_token_ids: frozenset[int] = frozenset()) -> None:
        self._target = target
        self._rules = LogitRules(eos_token_ids)

    def execute(self, plan: SchedulerOutput, drafts: Drafts) -> ModelRunnerOutput:
        """One ragged forward of committed tokens and proposals, and what the verifiers keep of it.

        `seconds` is left to whoever holds the clock.
        """
        proposals = [drafts.proposals.get(request.request_id) for request in plan.scheduled]
        segments = [_segment(request, nodes) for request, nodes in zip(plan.scheduled, proposals, strict=True)]
        logits = self._target.forward(segments)
        sampling = [(r, nodes) for r, nodes in zip(plan.scheduled, proposals, strict=True) if r.samples]
        rows = [_row(request, nodes, drafts) for request, nodes in sampling]
        scored, logits = _score_prompts(plan, segments, logits)
        results = verify(logits, rows, self._rules)
        sampled = {request.request_id: result for (request, _), result in zip(sampling, results, strict=True)}
        return ModelRunnerOutput(
            sampled=sampled,
            num_draft_computed={
                request.request_id: _draft_progress(request, drafts, sampled[request.request_id])
                for request, _ in sampling
                if request.request_id in drafts.num_fed
            },
            features=_features(plan, segments, drafts),
            seconds=StepSeconds(draft=0.0, target=0.0, host=0.0),
            prompt_logprobs=scored,
        )


def _segment(request: ScheduledRequest, nodes: Proposal | None) -> Segment:
    """The request's rows: committed tokens, then its proposal; logits from the newest committed one on."""
    if nodes is None:
        num_logits = len(request.prompt_targets) + request.samples
        return Segment(request.token_ids, request.start, request.block_table, num_logits)
    if not nodes.is_chain:
        raise ValueError(f"proposal must be a chain, got a tree with parents {nodes.parents}")
    return Segment([*request.token_ids, *nodes.token_ids], request.start, request.block_table, len(nodes) + 1)


def _score_prompts(
    plan: SchedulerOutput, segments: list[Segment], logits: torch.Tensor
) -> tuple[dict[str, list[TokenLogprob]], torch.Tensor]:
    """Log probabilities of the prompt tokens that the plan asks for, and the rows of *logits* to sample from."""
    if not any(request.prompt_targets for request in plan.scheduled):
        return {}, logits
    scored: dict[str, list[TokenLogprob]] = {}
    sampled: list[torch.Tensor] = []
    begin = 0
    for request, segment in zip(plan.scheduled, segments, strict=True):
        middle, end = begin + len(request.prompt_targets), begin + segment.num_logits
        if request.prompt_targets:
            num_top = request.sampling.prompt_logprobs or 0
            targets = request.prompt_targets
            scored[request.request_id] = score(logits[begin:middle], targets, [num_top] * len(targets))
        sampled.append(logits[middle:end])
        begin = end
    return scored, torch.cat(sampled)


def _row(request: ScheduledRequest, nodes: Proposal | None, drafts: Drafts) -> VerificationRow:
    return VerificationRow(
        sampling=request.sampling,
        noise_seed=request.noise_seed,
        position=request.start + len(request.token_ids),
        verifier=request.verifier,
        proposal=nodes,
        draft_probs=drafts.draft_probs.get(request.request_id),
        ruled=request.ruled,
    )


def _draft_progress(request: ScheduledRequest, drafts: Drafts, sampled: SampledTokens) -> int:
    """How far the draft's keys and values are those of committed tokens: up to the last node it was fed, if kept."""
    committed = request.start + len(request.token_ids)
    return min(drafts.num_fed[request.request_id], committed + sampled.num_accepted)


def _features(plan: SchedulerOutput, segments: list[Segment], drafts: Drafts) -> StepFeatures:
    """What ran, counted: the regressors of the time model, in the terms in which the policy predicts."""
    return StepFeatures(
        target_tokens=sum(len(segment.token_ids) for segment in segments),
        context_tokens=sum(request.start + len(request.token_ids) for request in plan.scheduled),
        num_requests=len(segments),
        prefill_tokens=plan.num_prefill_tokens,
        draft_batch_by_depth=drafts.batch_by_depth,
        draft_context_tokens=drafts.context_tokens,
        catchup_tokens=drafts.catchup_tokens,
    )
