"""One step on the target: the plan's rows and the drafted nodes in a single forward, then verification."""

from collections.abc import Sequence
from typing import Protocol

import torch

from smartspec.execution.batch import Segment
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


class TargetModel(Protocol):
    """The part of `PagedModel` that a step needs."""

    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """float32 logits [sum(num_logits), vocab], rows in segment order; keys and values of all rows are stored."""


class ModelRunner:
    """Executes plans on *target*; torch ends here, and ints come out."""

    def __init__(self, target: TargetModel, *, eos_token_ids: frozenset[int] = frozenset()) -> None:
        self._target = target
        self._eos_token_ids = eos_token_ids

    def execute(self, plan: SchedulerOutput, drafts: Drafts) -> ModelRunnerOutput:
        """One ragged forward of committed tokens and proposals, and what the verifiers keep of it.

        `seconds` is left to whoever holds the clock.
        """
        proposals = [drafts.proposals.get(request.request_id) for request in plan.scheduled]
        segments = [_segment(request, nodes) for request, nodes in zip(plan.scheduled, proposals, strict=True)]
        logits = self._target.forward(segments)
        sampling = [(r, nodes) for r, nodes in zip(plan.scheduled, proposals, strict=True) if r.samples]
        rows = [_row(request, nodes, drafts) for request, nodes in sampling]
        results = verify(logits, rows, eos_token_ids=self._eos_token_ids)
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
        )


def _segment(request: ScheduledRequest, nodes: Proposal | None) -> Segment:
    """The request's rows: committed tokens, then its proposal; logits from the newest committed one on."""
    if nodes is None:
        return Segment(request.token_ids, request.start, request.block_table, int(request.samples))
    if not nodes.is_chain:
        raise ValueError(f"proposal must be a chain, got a tree with parents {nodes.parents}")
    return Segment([*request.token_ids, *nodes.token_ids], request.start, request.block_table, len(nodes) + 1)


def _row(request: ScheduledRequest, nodes: Proposal | None, drafts: Drafts) -> VerificationRow:
    return VerificationRow(
        sampling=request.sampling,
        noise_seed=request.noise_seed,
        position=request.start + len(request.token_ids),
        num_output_tokens=request.num_output_tokens,
        verifier=request.verifier,
        proposal=nodes,
        draft_probs=drafts.draft_probs.get(request.request_id),
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
