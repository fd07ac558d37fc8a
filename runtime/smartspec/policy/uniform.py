"""Plans that need no optimiser: a given length for each request, and the paper's one length for the whole batch."""

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.goodput import Costs, Ints, Plan, Problem
from smartspec.policy.regression import Array


def evaluate(problem: Problem, costs: Costs, num_tokens: Ints, uses_draft: NDArray[np.bool_]) -> Plan:
    """What comes of `num_tokens` [R] from the draft where `uses_draft` [R], else from lookup."""
    chances = np.where(uses_draft[:, None], problem.draft, problem.lookup)
    taken = np.arange(1, chances.shape[1] + 1)[None, :] <= num_tokens[:, None]
    tokens = 1.0 + np.where(taken, chances, 0.0).sum(axis=1)
    seconds = float(costs.target(np.array([num_tokens.sum()]))[0]) + draft_seconds(
        problem, costs, np.where(uses_draft, num_tokens, 0), problem.first_rows
    )
    worth = float((tokens * problem.worth).sum())
    return Plan(
        num_tokens=num_tokens,
        uses_draft=uses_draft & (num_tokens > 0),
        tokens=float(tokens.sum()),
        worth=worth,
        seconds=seconds,
        goodput=worth / max(seconds - costs.sunk, 1e-9),
        tpot_seconds=seconds / float(tokens.min()),
    )


def draft_seconds(problem: Problem, costs: Costs, lengths: Ints, first_rows: Array) -> float:
    """Seconds of all draft forwards when each request drafts `lengths` [R] tokens (0: none)."""
    deepest = int(lengths.max(initial=0))
    if not deepest:
        return 0.0
    rows = np.count_nonzero(lengths[:, None] >= np.arange(1, deepest + 1)[None, :], axis=0).astype(np.float64)
    rows[0] = first_rows[lengths > 0].sum()
    return float(costs.draft(rows).sum() + costs.draft_context * (problem.context * lengths).sum())


def fixed(problem: Problem, costs: Costs, wanted: Ints) -> Plan:
    """`wanted` [R] tokens for each request, from the draft where it has one, less where there is no room."""
    uses_draft = problem.draft[:, 0] > 0
    room = np.count_nonzero(np.where(uses_draft[:, None], problem.draft, problem.lookup) > 0, axis=1)
    lengths = np.minimum(wanted, room)
    if lengths.sum() > problem.max_nodes:
        # Position by position, so that nobody gets a second token before everybody has a first one.
        depth = problem.draft.shape[1]
        position, request = np.nonzero(np.arange(1, depth + 1)[:, None] <= lengths[None, :])
        assert len(position) == lengths.sum()
        lengths = np.bincount(request[: problem.max_nodes], minlength=len(lengths))
    return evaluate(problem, costs, lengths, uses_draft)


def batch(problem: Problem, costs: Costs) -> Plan:
    """One length for all that are free to choose: the greatest goodput among 0 .. K, within the TPOT target where one
    is (source: arXiv 2406.14066, algorithm 1). `problem` should hold one acceptance rate and `costs` a line."""
    free = problem.forced < 0
    plans = [fixed(problem, costs, np.where(free, k, problem.forced)) for k in range(problem.draft.shape[1] + 1)]
    target = problem.tpot_target_seconds
    within = [plan for plan in plans if target is None or plan.tpot_seconds <= target]
    return max(within, key=lambda p: p.goodput) if within else min(plans, key=lambda p: p.tpot_seconds)
