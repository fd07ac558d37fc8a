"""A `BatchState` as arrays: what the optimiser weighs, and what its plan makes of the step."""

from collections.abc import Sequence

import numpy as np

from smartspec.policy.acceptance import AcceptanceModel, rows_of
from smartspec.policy.goodput import Costs, Ints, Plan, Problem
from smartspec.policy.latency import LatencyModel
from smartspec.policy.regression import Array
from smartspec.policy.types import BatchState, Candidate, Choice, Proposer, StepFeatures

CATCHUP_STEPS = 16.0
"""Feeding the draft what it missed is an investment: its cost is weighed as if spread over this many steps."""


def problem_of(
    batch: BatchState,
    acceptance: AcceptanceModel,
    forced: Ints,
    ceiling: int,
    *,
    tpot_target_seconds: float | None = None,
    one_rate: bool = False,
) -> Problem:
    """The optimiser's view of *batch* when nobody may speculate more than *ceiling* tokens; *one_rate* gives all
    requests and positions of a pair the same acceptance."""
    candidates = batch.candidates
    caps = np.array([min(c.max_speculative_tokens, ceiling) for c in candidates])
    lags = [c.draft_lag_tokens for c in candidates]
    copies = np.array([c.lookup_tokens for c in candidates])
    lag = np.array([lag or 1 for lag in lags], dtype=np.float64)
    can_draft = np.array([lag is not None for lag in lags])
    if one_rate:
        copies = np.where(can_draft, 0, copies)  # as the paper has it: the draft, where there is one
    depth = max(1, ceiling)
    return Problem(
        draft=_chances(candidates, acceptance, "draft", np.where(can_draft, caps, 0), depth, one_rate=one_rate),
        lookup=_chances(candidates, acceptance, "lookup", np.minimum(caps, copies), depth, one_rate=one_rate),
        first_rows=np.minimum(lag, 2.0) + np.maximum(lag - 2.0, 0.0) / CATCHUP_STEPS,
        context=np.array([c.context_tokens for c in candidates], dtype=np.float64),
        forced=forced,
        worth=np.ones(len(candidates)),
        max_nodes=batch.max_nodes,
        tpot_target_seconds=tpot_target_seconds,
    )


def _chances(
    candidates: Sequence[Candidate],
    acceptance: AcceptanceModel,
    proposer: Proposer,
    caps: Ints,
    depth: int,
    *,
    one_rate: bool,
) -> Array:
    """Survival [R, depth] of what *proposer* would bring, 0 beyond each request's cap."""
    chances = np.zeros((len(candidates), depth))
    able = np.flatnonzero(caps)
    if not len(able):
        return chances
    chosen = candidates if len(able) == len(candidates) else [candidates[index] for index in able.tolist()]
    matches = np.array([c.lookup_match_tokens for c in chosen], dtype=np.intp)
    rows = rows_of(proposer, [c.verifier for c in chosen], matches)
    if one_rate:
        found = acceptance.pooled(rows, depth)
    else:
        found = acceptance.survival(rows, [c.request_id for c in chosen], proposer, depth)
    # Never quite 0 within the cap: 0 says that there is nothing to be had.
    chances[able] = np.where(np.arange(depth) < caps[able][:, None], np.maximum(found, 1e-12), 0.0)
    return chances


def costs_of(batch: BatchState, latency: LatencyModel) -> Costs:
    """What nodes cost in the coming step, by *latency*."""
    num = len(batch.candidates)
    context = sum(c.context_tokens for c in batch.candidates)

    def target(nodes: Array) -> Array:
        return latency.target_curve(
            nodes + (num + batch.prefill_tokens),
            context=context + batch.prefill_context_tokens,
            requests=num + batch.num_prefills,
            prefill=batch.prefill_tokens,
        )

    sunk = 0.0
    if batch.prefill_tokens:
        decode = latency.target_curve(np.array([num]), context=context, requests=num, prefill=0)
        sunk = float(target(np.zeros(1))[0] - decode[0])
    return Costs(target, latency.draft_curve, latency.draft_context_seconds, sunk)


def features_of(batch: BatchState, plan: Plan | None) -> StepFeatures:
    """What the step will consist of under *plan*; None is no speculation."""
    candidates = batch.candidates
    by_depth: tuple[int, ...] = ()
    num_nodes, draft_context, catchup = 0, 0, 0
    if plan is not None:
        num_nodes = int(plan.num_tokens.sum())
        drafting = np.flatnonzero(plan.uses_draft)
        lengths = plan.num_tokens[drafting]
        if len(drafting):
            depths = np.arange(1, int(lengths.max()) + 1)
            by_depth = tuple(np.count_nonzero(lengths[:, None] >= depths, axis=0).tolist())
            for index, length in zip(drafting.tolist(), lengths.tolist(), strict=True):
                draft_context += candidates[index].context_tokens * length
                catchup += candidates[index].draft_lag_tokens or 1
    return StepFeatures(
        target_tokens=len(candidates) + batch.prefill_tokens + num_nodes,
        context_tokens=sum([c.context_tokens for c in candidates]) + batch.prefill_context_tokens,
        num_requests=len(candidates) + batch.num_prefills,
        prefill_tokens=batch.prefill_tokens,
        draft_batch_by_depth=by_depth,
        draft_context_tokens=draft_context,
        catchup_tokens=catchup,
    )


def choices_of(batch: BatchState, plan: Plan) -> dict[str, Choice]:
    """*plan* by request id; requests without speculation are not in it."""
    candidates = batch.candidates
    where = np.flatnonzero(plan.num_tokens)
    drafts, lengths = plan.uses_draft[where].tolist(), plan.num_tokens[where].tolist()
    return {
        candidates[index].request_id: Choice("draft" if from_draft else "lookup", length)
        for index, from_draft, length in zip(where.tolist(), drafts, lengths, strict=True)
    }
