"""A `BatchState` as arrays: what the optimiser weighs, and what its plan would make of the step."""

from dataclasses import dataclass

import numpy as np

from smartspec.policy.acceptance import AcceptanceModel, row_of
from smartspec.policy.goodput import Costs, Ints, Plan, Problem
from smartspec.policy.latency import LatencyModel
from smartspec.policy.regression import Array
from smartspec.policy.types import BatchState, Candidate, Choice, StepFeatures

CATCHUP_STEPS = 16.0
"""Feeding the draft what it missed is an investment: its cost is weighed as if spread over this many steps."""


@dataclass(frozen=True)
class Survival:
    """Survival probabilities [R, K] by proposer, 0 beyond what each request may take from it."""

    draft: Array
    lookup: Array


def survival(candidates: tuple[Candidate, ...], acceptance: AcceptanceModel, ceiling: int) -> Survival:
    """What each request may speculate, at most *ceiling* tokens, and how likely it is kept."""
    depth = max(1, ceiling)
    empty = np.zeros((len(candidates), depth))
    caps = [min(c.max_speculative_tokens, ceiling) for c in candidates]
    drafts = [i for i, c in enumerate(candidates) if c.draft_lag_tokens is not None and caps[i] > 0]
    copies = [i for i, c in enumerate(candidates) if c.lookup_tokens > 0 and caps[i] > 0]
    draft, lookup = empty, empty
    if drafts:
        rows = [row_of("draft", candidates[i].verifier) for i in drafts]
        draft = _place(
            empty,
            drafts,
            acceptance.survival(rows, [candidates[i].request_id for i in drafts], "draft", depth),
            [caps[i] for i in drafts],
        )
    if copies:
        rows = [row_of("lookup", candidates[i].verifier, candidates[i].lookup_match_tokens) for i in copies]
        values = acceptance.survival(rows, [candidates[i].request_id for i in copies], "lookup", depth)
        lookup = _place(empty, copies, values, [min(caps[i], candidates[i].lookup_tokens) for i in copies])
    return Survival(draft, lookup)


def _place(empty: Array, where: list[int], values: Array, caps: list[int]) -> Array:
    placed = empty.copy()
    allowed = np.arange(1, values.shape[1] + 1)[None, :] <= np.array(caps)[:, None]
    placed[where] = np.where(allowed, np.maximum(values, 1e-12), 0.0)
    return placed


def problem_of(
    batch: BatchState, chances: Survival, forced: Ints, *, tpot_target_seconds: float | None = None
) -> Problem:
    """The optimiser's view of *batch*."""
    lag = np.array([float(c.draft_lag_tokens or 1) for c in batch.candidates])
    return Problem(
        draft=chances.draft,
        lookup=chances.lookup,
        first_rows=np.minimum(lag, 2.0) + np.maximum(lag - 2.0, 0.0) / CATCHUP_STEPS,
        context=np.array([float(c.context_tokens) for c in batch.candidates]),
        forced=forced,
        max_nodes=batch.max_nodes,
        tpot_target_seconds=tpot_target_seconds,
    )


def costs_of(batch: BatchState, latency: LatencyModel) -> Costs:
    """What nodes cost in the coming step, by *latency*."""
    num = len(batch.candidates)
    context = sum(c.context_tokens for c in batch.candidates)

    def decode_only(nodes: Array) -> Array:
        return latency.target_curve(nodes + num, context=context, requests=num, prefill=0)

    def target(nodes: Array) -> Array:
        return latency.target_curve(
            nodes + num + batch.prefill_tokens,
            context=context + batch.prefill_context_tokens,
            requests=num + batch.num_prefills,
            prefill=batch.prefill_tokens,
        )

    none = np.zeros(1)
    sunk = float(target(none)[0] - decode_only(none)[0]) if batch.prefill_tokens else 0.0
    return Costs(target, latency.draft_curve, latency.draft_context_seconds, sunk)


def features_of(batch: BatchState, plan: Plan | None) -> StepFeatures:
    """What the step will consist of under *plan*; None is no speculation."""
    candidates = batch.candidates
    by_depth: tuple[int, ...] = ()
    num_nodes, draft_context, catchup = 0, 0, 0
    if plan is not None:
        num_nodes = int(plan.num_tokens.sum())
        lengths = plan.num_tokens[plan.uses_draft]
        if len(lengths):
            by_depth = tuple(int(np.count_nonzero(lengths >= d)) for d in range(1, int(lengths.max()) + 1))
            for index in np.flatnonzero(plan.uses_draft):
                draft_context += candidates[index].context_tokens * int(plan.num_tokens[index])
                catchup += candidates[index].draft_lag_tokens or 1
    return StepFeatures(
        target_tokens=len(candidates) + batch.prefill_tokens + num_nodes,
        context_tokens=sum(c.context_tokens for c in candidates) + batch.prefill_context_tokens,
        num_requests=len(candidates) + batch.num_prefills,
        prefill_tokens=batch.prefill_tokens,
        draft_batch_by_depth=by_depth,
        draft_context_tokens=draft_context,
        catchup_tokens=catchup,
    )


def choices_of(batch: BatchState, plan: Plan) -> dict[str, Choice]:
    """*plan* by request id; requests without speculation are not in it."""
    candidates = batch.candidates
    return {
        candidates[index].request_id: Choice(
            "draft" if plan.uses_draft[index] else "lookup", int(plan.num_tokens[index])
        )
        for index in np.flatnonzero(plan.num_tokens)
    }
