"""Which tokens to speculate: the exact maximum of tokens kept per predicted second, over the whole batch at once.

Every candidate node (request r, position j) brings S[r, j] expected tokens: the probability that it and all before it
are kept. S falls with j, so the best nodes in sorted order are prefix-closed per request, and the best plan *of a
given size* takes the first b of them. One sorted list is not enough, because each depth costs a draft forward of its
own: for each greatest depth D the nodes within it are taken in order, and the ratio is maximised over every (D, b).
Costs have stairs, so no search stops at the first decrease (source: arXiv 2406.14066, section 4; the (D, b) form and
the parametric order for unequal marginal costs, after Dinkelbach, are this project's).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.regression import Array
from smartspec.policy.scan import scan

Ints = NDArray[np.intp]
Curve = Callable[[NDArray[Any]], Array]

GOOD_GUESS = 1.25
"""A guess of the goodput within this factor weighs costs well enough; another is replaced by what it led to."""
FEW_TORN = 2
"""Up to so many requests with both a draft and a match, every way to give each one proposer is tried."""


@dataclass(frozen=True)
class Costs:
    """What nodes cost in the coming step, as functions of counts (each vectorised, in seconds).

    `target` of the total number of speculative nodes: everything that is not the draft, with the step's other tokens
    included. `draft` of the rows of one draft forward. `draft_context` is per token of context and draft forward.
    `sunk` are the seconds of `target` owed to prefill tokens that share the step: they are spent whatever is
    speculated, so they are no reason to speculate more, and goodput is taken over the rest.
    """

    target: Curve
    draft: Curve
    draft_context: float = 0.0
    sunk: float = 0.0


@dataclass(frozen=True)
class Problem:
    """The requests of one step, R of them, and what each may speculate.

    `draft` and `lookup` [R, K] are survival probabilities per position, 0 beyond what the request may take from that
    proposer. `first_rows` [R] are the rows of a request's first draft forward (committed tokens the draft has not
    seen, discounted as the caller sees fit), `context` [R] its context tokens. `forced` [R] are the tokens a request
    takes whatever they cost, or -1 where the policy is free. `worth` [R] is what a token of each counts in the goodput.
    """

    draft: Array
    lookup: Array
    first_rows: Array
    context: Array
    forced: Ints
    worth: Array
    max_nodes: int
    tpot_target_seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """`num_tokens` [R] from the draft where `uses_draft` [R], else from lookup; expected `tokens` kept by all requests
    in `seconds`, what they are `worth`, and that per second as `goodput`; `tpot_seconds` is the predicted time per
    output token of the request that fares worst, counting the whole step."""

    num_tokens: Ints
    uses_draft: NDArray[np.bool_]
    tokens: float
    worth: float
    seconds: float
    goodput: float
    tpot_seconds: float


@dataclass(frozen=True)
class _Tables:
    """Costs tabulated for one step: the target's seconds by nodes, a draft forward's by rows."""

    target: Array
    draft: Array

    @classmethod
    def of(cls, problem: Problem, costs: Costs) -> "_Tables":
        num, depth = problem.draft.shape
        most_rows = max(num, math.ceil(problem.first_rows.sum())) + 2
        return cls(
            target=costs.target(np.arange(min(num * depth, max(0, problem.max_nodes)) + 1)),
            draft=costs.draft(np.arange(most_rows)),
        )


def optimise(problem: Problem, costs: Costs, *, rate: float, margin: float = 0.0, drafting: bool = True) -> Plan:
    """The plan of greatest goodput; among those within the TPOT target, where one is.

    *rate* is a guess of the goodput (tokens per second; the last step's), used only to weigh unequal marginal costs
    and refined here. *drafting* says whether the draft was used in the last step, and *margin* by what share the
    other way (with the draft, without it) must be better to be taken instead: 0.02 is 2 %.
    """
    tables = _Tables.of(problem, costs)
    found = _plans(problem, costs, tables, rate)
    reached = max(plan.goodput for plan in found)
    if not 1.0 / GOOD_GUESS < reached / rate < GOOD_GUESS and _costs_differ(problem, costs):
        found += _plans(problem, costs, tables, reached)
    target = math.inf if problem.tpot_target_seconds is None else problem.tpot_target_seconds
    without = _best([p for p in found if not p.uses_draft.any()], target)
    using = _best([p for p in found if p.uses_draft.any()], target)
    if without is None or using is None:
        chosen = using if without is None else without
        assert chosen is not None, "at least the empty plan is always scanned"
        return chosen
    stay, leave = (using, without) if drafting else (without, using)
    if max(stay.tpot_seconds, leave.tpot_seconds) > target:
        best = _best([stay, leave], target)
        assert best is not None
        return best
    return leave if leave.goodput > stay.goodput * (1.0 + margin) else stay


def _costs_differ(problem: Problem, costs: Costs) -> bool:
    """Whether nodes of equal gain may cost differently, so that their order depends on what a second is worth."""
    by_lag = problem.first_rows.max() > 2.0
    return bool(by_lag or costs.draft_context > 0.0 or (problem.lookup[:, 0] > 0).any())


def _best(plans: list[Plan], target: float) -> Plan | None:
    """The plan of greatest goodput within the target, or the one nearest to it when none is."""
    if not plans:
        return None
    within = [p for p in plans if p.tpot_seconds <= target]
    return max(within, key=lambda p: p.goodput) if within else min(plans, key=lambda p: p.tpot_seconds)


def _plans(problem: Problem, costs: Costs, tables: _Tables, rate: float) -> list[Plan]:
    """The best plans without and with the draft, for some assignments of proposers to requests."""
    found: list[Plan] = []
    target = math.inf if problem.tpot_target_seconds is None else problem.tpot_target_seconds
    for drafted in _assignments(problem, costs, tables, rate):
        gains = np.where(drafted[:, None], problem.draft, problem.lookup)
        lengths, figures = scan(
            gains, problem.worth, drafted, problem.forced, problem.first_rows, problem.context,
            tables.target, tables.draft, costs.draft_context, costs.sunk, target, rate,
        )  # fmt: skip
        for num_tokens, (tokens, worth, seconds, goodput, tpot) in zip(lengths, figures.tolist(), strict=True):
            if goodput >= 0.0:
                uses_draft = drafted & (num_tokens > 0)
                found.append(Plan(num_tokens, uses_draft, tokens, worth, seconds, goodput, tpot))
    return found


def _assignments(problem: Problem, costs: Costs, tables: _Tables, rate: float) -> list[NDArray[np.bool_]]:
    """Ways to give each request one proposer: [R] booleans, True for the draft."""
    can_draft, can_copy = problem.draft[:, 0] > 0, problem.lookup[:, 0] > 0
    if not can_copy.any():
        return [can_draft]
    if not can_draft.any():
        return [np.zeros_like(can_draft)]
    torn = np.flatnonzero(can_draft & can_copy)
    if len(torn) <= FEW_TORN:
        ways = np.repeat(can_draft[None, :], 2 ** len(torn), axis=0)
        ways[:, torn] = np.indices((2,) * len(torn), dtype=bool).reshape(len(torn), -1).T
        return list(ways)
    # By value: what each chain brings its request when a second is worth `rate` tokens and nodes cost their slope.
    num = len(can_draft)
    nodes = min(len(tables.target) - 1, 4 * num)
    slope = float(tables.target[nodes] - tables.target[0]) / max(1, nodes)
    rows = float(tables.draft[num + 1] - tables.draft[1]) / num
    draft_extra = rows + costs.draft_context * problem.context[:, None]
    worth = problem.worth[:, None]
    by_draft = np.cumsum(problem.draft * worth - rate * (slope + draft_extra), axis=1).max(axis=1)
    by_lookup = np.cumsum(problem.lookup * worth - rate * slope, axis=1).max(axis=1)
    by_value = can_draft & ~(can_copy & (by_lookup >= by_draft - rate * rows * (problem.first_rows - 1.0)))
    return [by_value, np.zeros_like(can_draft)]
