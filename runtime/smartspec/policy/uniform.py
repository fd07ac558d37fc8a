"""Plans that need no optimiser: a given length for each request, and the paper's one length for the whole batch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartspec.native import njit
from smartspec.policy.costs import Costs
from smartspec.policy.goodput import Plan, Problem
from smartspec.policy.regression import Ints


def evaluate(problem: Problem, costs: Costs, num_tokens: Ints, uses_draft: NDArray[np.bool_]) -> Plan:
    """What comes of `num_tokens` [R] from the draft where `uses_draft` [R], else from lookup."""
    drafts = uses_draft & (num_tokens > 0)
    num_nodes, tokens, worth, fewest = _expected(problem.draft, problem.lookup, problem.worth, num_tokens, uses_draft)
    seconds = float(costs.target[num_nodes])
    seconds += costs.draft_seconds(num_tokens, drafts, problem.first_rows, problem.context)
    goodput = worth / max(seconds - costs.sunk, 1e-9)
    return Plan(num_tokens, drafts, num_nodes, tokens, worth, seconds, goodput, seconds / fewest)


@njit(
    "Tuple((int64, float64, float64, float64))(float64[:,::1], float64[:,::1], float64[::1], int64[::1], boolean[::1])",
    cache=True,
)
def _expected(draft: Any, lookup: Any, worth: Any, num_tokens: Any, uses_draft: Any) -> Any:
    """Nodes of such lengths, tokens expected, what they are worth, and those of the request that keeps fewest."""
    num, depth = draft.shape
    nodes, total, valued, fewest = 0, 0.0, 0.0, np.inf
    for r in range(num):
        nodes += num_tokens[r]
        tokens = 1.0
        for j in range(min(depth, num_tokens[r])):
            tokens += draft[r, j] if uses_draft[r] else lookup[r, j]
        total += tokens
        valued += tokens * worth[r]
        fewest = min(fewest, tokens)
    return nodes, total, valued, fewest


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
