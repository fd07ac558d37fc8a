"""Which tokens to speculate: the exact maximum of tokens kept per predicted second, over the whole batch at once.

Every candidate node (request r, position j) brings S[r, j] expected tokens: the probability that it and all before it
are kept. S falls with j, so the best nodes in sorted order are prefix-closed per request, and the best plan *of a
given size* takes the first b of them. One sorted list is not enough, because each depth costs a draft forward of its
own: for each greatest depth D the nodes within it are taken in order, and the ratio is maximised over every (D, b).
Costs have stairs, so no search stops at the first decrease (source: arXiv 2406.14066, section 4; the (D, b) form and
the parametric order for unequal marginal costs, after Dinkelbach, are this project's).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.regression import Array

Ints = NDArray[np.intp]
Curve = Callable[[NDArray[Any]], Array]

GOOD_GUESS = 1.25
"""A guess of the goodput within this factor weighs costs well enough; another is replaced by what it led to."""
FEW_TORN = 2
"""Up to so many requests with both a draft and a match, every way to give each one proposer is tried."""

_Choice = TypeVar("_Choice", "Plan", "_Point")

FORCED = 1e6
"""Score that puts a node its request insists on before every other."""
TIE = 1e-9
"""Keeps nodes of equal value in the order of their positions, which prefix-closure needs."""


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
class _Nodes:
    """Candidate nodes [N], flat and sorted by value: the tokens each brings, what these are worth, what its request
    keeps without it, whose it is, and its depth in the draft (0: copied by lookup). The first `num_forced` are insisted
    upon."""

    gain: Array
    worth: Array
    before: Array
    request: Ints
    draft_depth: Ints
    num_forced: int


@dataclass(frozen=True)
class _Point:
    """The best number of nodes within one greatest depth: which they are, and what comes of them."""

    taken: Ints
    worth: float
    seconds: float
    goodput: float
    tpot_seconds: float
    uses_draft: bool


def optimise(problem: Problem, costs: Costs, *, rate: float, margin: float = 0.0, drafting: bool = True) -> Plan:
    """The plan of greatest goodput; among those within the TPOT target, where one is.

    *rate* is a guess of the goodput (tokens per second; the last step's), used only to weigh unequal marginal costs
    and refined here. *drafting* says whether the draft was used in the last step, and *margin* by what share the
    other way (with the draft, without it) must be better to be taken instead: 0.02 is 2 %.
    """
    found = [plan for way in _assignments(problem, costs, rate) for plan in _scan(problem, costs, way, rate)]
    reached = max(plan.goodput for plan in found)
    if not 1.0 / GOOD_GUESS < reached / rate < GOOD_GUESS and _costs_differ(problem, costs):
        found += [plan for way in _assignments(problem, costs, reached) for plan in _scan(problem, costs, way, reached)]
    without = _best([p for p in found if not p.uses_draft.any()], problem.tpot_target_seconds)
    using = _best([p for p in found if p.uses_draft.any()], problem.tpot_target_seconds)
    if without is None or using is None:
        chosen = using if without is None else without
        assert chosen is not None, "at least the empty plan is always scanned"
        return chosen
    stay, leave = (using, without) if drafting else (without, using)
    target = problem.tpot_target_seconds
    if target is not None and not (stay.tpot_seconds <= target and leave.tpot_seconds <= target):
        best = _best([stay, leave], target)
        assert best is not None
        return best
    return leave if leave.goodput > stay.goodput * (1.0 + margin) else stay


def _costs_differ(problem: Problem, costs: Costs) -> bool:
    """Whether nodes of equal gain may cost differently, so that their order depends on what a second is worth."""
    by_lag = problem.first_rows.max() > 2.0
    return bool(by_lag or costs.draft_context > 0.0 or (problem.lookup[:, 0] > 0).any())


def _best(plans: list[_Choice], target: float | None) -> _Choice | None:
    """The plan of greatest goodput within the target, or the one nearest to it when none is."""
    if not plans:
        return None
    within = [p for p in plans if target is None or p.tpot_seconds <= target]
    return max(within, key=lambda p: p.goodput) if within else min(plans, key=lambda p: p.tpot_seconds)


def _assignments(problem: Problem, costs: Costs, rate: float) -> list[NDArray[np.bool_]]:
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
    nodes = np.array([0.0, float(min(problem.max_nodes, 4 * len(can_draft)))])
    slope = float(np.diff(costs.target(nodes))[0] / max(nodes[1], 1.0))
    rows = float(np.diff(costs.draft(np.array([1.0, float(len(can_draft)) + 1.0])))[0] / len(can_draft))
    draft_extra = rows + costs.draft_context * problem.context[:, None]
    worth = problem.worth[:, None]
    by_draft = np.cumsum(problem.draft * worth - rate * (slope + draft_extra), axis=1).max(axis=1)
    by_lookup = np.cumsum(problem.lookup * worth - rate * slope, axis=1).max(axis=1)
    by_value = can_draft & ~(can_copy & (by_lookup >= by_draft - rate * rows * (problem.first_rows - 1.0)))
    return [by_value, can_draft, can_draft & ~can_copy]


def _sorted_nodes(problem: Problem, costs: Costs, gains: Array, assigned: NDArray[np.bool_], rate: float) -> _Nodes:
    num_requests, depth = gains.shape
    position = np.arange(1, depth + 1, dtype=np.intp)
    worth = gains * problem.worth[:, None]
    value = worth - TIE * position
    if costs.draft_context > 0.0:
        value -= np.where(assigned, rate * costs.draft_context * problem.context, 0.0)[:, None]
    lag = problem.first_rows - 1.0
    if lag.max() > 1.0:
        span = np.array([1.0, 1.0 + float(lag.max())])
        row_seconds = float(np.diff(costs.draft(span))[0]) / (span[1] - 1.0)
        value[:, 0] -= np.where(assigned, rate * row_seconds * lag, 0.0)
        # A first node dearer than those behind it: they are worth taking together or not at all, so the first ones
        # share their mean value (the concave hull of the chain's value).
        means = np.cumsum(value, axis=1) / position
        block = means.argmax(axis=1)
        shared = means[np.arange(num_requests), block][:, None] - TIE * position
        value = np.where(position <= block[:, None] + 1, shared, value)
    allowed = gains > 0.0
    num_forced = 0
    if (problem.forced >= 0).any():
        insisted = position <= problem.forced[:, None]
        value = np.where(insisted, FORCED - position, value)
        num_forced = int(np.count_nonzero(insisted & allowed))
        allowed &= (problem.forced < 0)[:, None] | insisted
    flat = np.flatnonzero(allowed)
    order = flat[np.argsort(-value.ravel()[flat])]
    request = order // depth
    before = 1.0 + np.cumsum(gains, axis=1) - gains
    return _Nodes(
        gain=gains.ravel()[order],
        worth=worth.ravel()[order],
        before=before.ravel()[order],
        request=request,
        draft_depth=np.where(assigned[request], order - request * depth + 1, 0),
        num_forced=num_forced,
    )


def _scan(problem: Problem, costs: Costs, assigned: NDArray[np.bool_], rate: float) -> list[Plan]:
    """The best plans without and with the draft, for one assignment of proposers."""
    gains = np.where(assigned[:, None], problem.draft, problem.lookup)
    nodes = _sorted_nodes(problem, costs, gains, assigned, rate)
    most = min(len(nodes.gain), problem.max_nodes)
    target_seconds = costs.target(np.arange(most + 1))
    draft_seconds = _draft_seconds(problem, costs, nodes)
    least = int(nodes.draft_depth[: nodes.num_forced].max(initial=0))
    deepest = int(nodes.draft_depth.max(initial=0))
    plain = float(problem.worth.sum())
    points: list[_Point] = []
    for limit in range(least, deepest + 1):
        kept = np.flatnonzero(nodes.draft_depth <= limit)[:most]
        seconds, worth = target_seconds[: len(kept) + 1].copy(), np.empty(len(kept) + 1)
        worth[0] = 0.0
        np.cumsum(nodes.worth[kept], out=worth[1:])
        worth += plain
        if limit:
            seconds[1:] += np.cumsum(draft_seconds[kept])
        goodput = worth / (seconds - costs.sunk)
        first = min(nodes.num_forced, len(kept))
        if problem.tpot_target_seconds is None:
            best, worst = first + int(goodput[first:].argmax()), 0.0
        else:
            tpot = seconds / _least_tokens(gains, assigned, nodes, kept, limit)
            fits = tpot[first:] <= problem.tpot_target_seconds
            score = np.where(fits, goodput[first:], 0.0) if fits.any() else -tpot[first:]
            best = first + int(score.argmax())
            worst = float(tpot[best])
        uses_draft = bool(nodes.draft_depth[kept[:best]].any())
        points.append(
            _Point(kept[:best], float(worth[best]), float(seconds[best]), float(goodput[best]), worst, uses_draft)
        )
    chosen = (_best([p for p in points if p.uses_draft is kind], problem.tpot_target_seconds) for kind in (False, True))
    return [_plan_at(point, nodes, assigned) for point in chosen if point is not None]


def _plan_at(point: _Point, nodes: _Nodes, assigned: NDArray[np.bool_]) -> Plan:
    num_tokens = np.bincount(nodes.request[point.taken], minlength=len(assigned))
    uses_draft = assigned & (num_tokens > 0)
    tokens = len(assigned) + float(nodes.gain[point.taken].sum())
    return Plan(num_tokens, uses_draft, tokens, point.worth, point.seconds, point.goodput, point.tpot_seconds)


def _draft_seconds(problem: Problem, costs: Costs, nodes: _Nodes) -> Array:
    """What each sorted node adds to the draft's forwards [N]. A node's share depends on how many of the same depth
    come before it, and on nothing else, so it is the same for every greatest depth that includes it."""
    depths = nodes.draft_depth
    counts = np.bincount(depths, minlength=2)
    if counts[0] == len(depths):
        return np.zeros(len(depths))
    by_depth = np.argsort(depths.astype(np.int8), kind="stable")  # small integers: a radix sort
    rank = np.arange(len(depths)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.diff(costs.draft(np.arange(problem.draft.shape[0] + 1)))[np.minimum(rank, problem.draft.shape[0] - 1)]
    values[: counts[0]] = 0.0
    firsts = slice(counts[0], counts[0] + counts[1])
    rows = np.concatenate(([0.0], np.cumsum(problem.first_rows[nodes.request[by_depth[firsts]]])))
    values[firsts] = np.diff(costs.draft(rows))
    extra = np.empty(len(depths))
    extra[by_depth] = values
    if costs.draft_context > 0.0:
        extra += np.where(depths > 0, costs.draft_context * problem.context[nodes.request], 0.0)
    return extra


def _least_tokens(gains: Array, assigned: NDArray[np.bool_], nodes: _Nodes, kept: Ints, limit: int) -> Array:
    """Expected tokens of the request that keeps fewest, for each number of nodes taken of those *kept*."""
    drafted = gains[:, :limit].sum(axis=1)
    final = 1.0 + float(np.where(assigned, drafted, gains.sum(axis=1)).min())
    # A request keeps `before` tokens until its next node is taken, and what it has in the end from its last one on.
    # Later values of one request only exceed earlier ones, so the minimum over all that is yet to come is the answer.
    until = np.append(nodes.before[kept], final)
    least: Array = np.minimum.accumulate(until[::-1])[::-1]
    return least
