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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartspec.policy.regression import Array

Ints = NDArray[np.intp]
Curve = Callable[[NDArray[Any]], Array]

FORCED = 1e6
"""Score that puts a node its request insists on before every other."""
TIE = 1e-9
"""Keeps nodes of equal worth in the order of their positions, which prefix-closure needs."""


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
    takes whatever they cost, or -1 where the policy is free.
    """

    draft: Array
    lookup: Array
    first_rows: Array
    context: Array
    forced: Ints
    max_nodes: int
    tpot_target_seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """`num_tokens` [R] from the draft where `uses_draft` [R], else from lookup; expected `tokens` kept by all requests
    in `seconds`; `tpot_seconds` is the predicted time per output token of the request that fares worst, counting the
    whole step."""

    num_tokens: Ints
    uses_draft: NDArray[np.bool_]
    tokens: float
    seconds: float
    goodput: float
    tpot_seconds: float


@dataclass(frozen=True)
class _Nodes:
    """Candidate nodes, flat and sorted by worth: gain, request, position (from 1), whether from the draft."""

    gain: Array
    request: Ints
    position: Ints
    from_draft: NDArray[np.bool_]
    num_forced: int


def optimise(problem: Problem, costs: Costs, *, rate: float, margin: float = 0.0, drafting: bool = True) -> Plan:
    """The plan of greatest goodput; among those within the TPOT target, where one is.

    *rate* is a guess of the goodput (tokens per second; the last step's), used only to weigh unequal marginal costs
    and refined here. *drafting* says whether the draft was used in the last step, and *margin* by what share the
    other way (with the draft, without it) must be better to be taken instead: 0.02 is 2 %.
    """
    found: list[Plan] = []
    for assigned in _assignments(problem, costs, rate):
        found.extend(_scan(problem, costs, assigned, rate))
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


def _best(plans: list[Plan], target: float | None) -> Plan | None:
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
    # By value: what each chain is worth to its request when a second is worth `rate` tokens and nodes cost their slope.
    nodes = np.array([0.0, float(min(problem.max_nodes, 4 * len(can_draft)))])
    slope = float(np.diff(costs.target(nodes))[0] / max(nodes[1], 1.0))
    rows = float(np.diff(costs.draft(np.array([1.0, float(len(can_draft)) + 1.0])))[0] / len(can_draft))
    draft_extra = rows + costs.draft_context * problem.context[:, None]
    by_draft = np.cumsum(problem.draft - rate * (slope + draft_extra), axis=1).max(axis=1)
    by_lookup = np.cumsum(problem.lookup - rate * slope, axis=1).max(axis=1)
    by_value = can_draft & ~(can_copy & (by_lookup >= by_draft - rate * rows * (problem.first_rows - 1.0)))
    return [by_value, can_draft, can_draft & ~can_copy]


def _sorted_nodes(problem: Problem, costs: Costs, assigned: NDArray[np.bool_], rate: float) -> _Nodes:
    gains = np.where(assigned[:, None], problem.draft, problem.lookup)
    num_requests, depth = gains.shape
    position = np.arange(1, depth + 1, dtype=np.intp)
    worth = gains.copy()
    extra = rate * costs.draft_context * problem.context + 0.0
    worth -= np.where(assigned, extra, 0.0)[:, None]
    lag = problem.first_rows - 1.0
    if (lag > 1.0).any():
        span = np.array([1.0, 1.0 + float(lag.max())])
        row_seconds = float(np.diff(costs.draft(span))[0]) / max(span[1] - 1.0, 1.0)
        worth[:, 0] -= np.where(assigned, rate * row_seconds * lag, 0.0)
        # A first node dearer than those behind it: they are worth taking together or not at all, so the first ones
        # share their mean worth (the concave hull of the chain's value).
        means = np.cumsum(worth, axis=1) / position
        block = np.argmax(means, axis=1)
        shared = position[None, :] <= block[:, None] + 1
        worth = np.where(shared, means[np.arange(num_requests), block][:, None], worth)
    forced = problem.forced
    insisted = position[None, :] <= forced[:, None]
    allowed = (gains > 0) & ((forced < 0)[:, None] | insisted)
    worth = np.where(insisted, FORCED - position, worth - TIE * position)
    flat = np.flatnonzero(allowed)
    order = flat[np.argsort(-worth.ravel()[flat])]
    request = order // depth
    return _Nodes(
        gain=gains.ravel()[order],
        request=request,
        position=order % depth + 1,
        from_draft=assigned[request],
        num_forced=int(np.count_nonzero(insisted & allowed)),
    )


def _scan(problem: Problem, costs: Costs, assigned: NDArray[np.bool_], rate: float) -> list[Plan]:
    """The best plan without and with the draft for one assignment of proposers."""
    nodes = _sorted_nodes(problem, costs, assigned, rate)
    num_requests = len(assigned)
    total = min(len(nodes.gain), problem.max_nodes)
    target_seconds = costs.target(np.arange(total + 1))
    draft_depth = np.where(nodes.from_draft, nodes.position, 0)
    extra = _draft_seconds(problem, costs, nodes, draft_depth)
    deepest = int(draft_depth.max(initial=0))
    forced_depth = int(draft_depth[: nodes.num_forced].max(initial=0))
    plans: list[Plan] = []
    for limit in range(forced_depth, deepest + 1):
        kept = slice(None) if limit == deepest else np.flatnonzero(draft_depth <= limit)
        gain = nodes.gain[kept][:total]
        size = len(gain)
        tokens, seconds = np.empty(size + 1), np.empty(size + 1)
        tokens[0], seconds[0] = num_requests, 0.0
        np.cumsum(gain, out=tokens[1:])
        tokens[1:] += num_requests
        np.cumsum(extra[kept][:total], out=seconds[1:])
        seconds += target_seconds[: size + 1]
        goodput = tokens / np.maximum(seconds - costs.sunk, 1e-9)
        first = min(nodes.num_forced, size)
        if problem.tpot_target_seconds is None:
            worst = None
            choice = first + int(goodput[first:].argmax())
        else:
            worst = seconds / _least_tokens(nodes, kept, size, num_requests)
            within = worst[first:] <= problem.tpot_target_seconds
            ranked = np.where(within, goodput[first:], 0.0) if within.any() else -worst[first:]
            choice = first + int(ranked.argmax())
        taken = np.arange(len(nodes.gain))[kept][:choice]
        num_tokens = np.bincount(nodes.request[taken], minlength=num_requests)
        plans.append(
            Plan(
                num_tokens=num_tokens,
                uses_draft=assigned & (num_tokens > 0),
                tokens=float(tokens[choice]),
                seconds=float(seconds[choice]),
                goodput=float(goodput[choice]),
                tpot_seconds=float(worst[choice]) if worst is not None else 0.0,
            )
        )
    return plans


def _draft_seconds(problem: Problem, costs: Costs, nodes: _Nodes, draft_depth: Ints) -> Array:
    """What each sorted node adds to the draft's forwards [N]. A node's share depends on how many of the same depth
    come before it, and on nothing else, so it is the same for every greatest depth that includes it."""
    extra = np.zeros(len(nodes.gain))
    if not nodes.from_draft.any():
        return extra
    by_rank = np.diff(costs.draft(np.arange(problem.draft.shape[0] + 1)))
    for depth in range(1, int(draft_depth.max()) + 1):
        where = np.flatnonzero(draft_depth == depth)
        if depth == 1:
            rows = np.concatenate(([0.0], np.cumsum(problem.first_rows[nodes.request[where]])))
            extra[where] = np.diff(costs.draft(rows))
        else:
            extra[where] = by_rank[: len(where)]
    if costs.draft_context > 0:
        extra += np.where(nodes.from_draft, costs.draft_context * problem.context[nodes.request], 0.0)
    return extra


def _least_tokens(nodes: _Nodes, kept: slice | Ints, size: int, num_requests: int) -> Array:
    """Expected tokens of the request that keeps fewest, for each number of nodes taken [size + 1]."""
    request, gain = nodes.request[kept][:size], nodes.gain[kept][:size]
    order = np.argsort(request, kind="stable")
    by_request, gains = request[order], gain[order]
    starts = np.flatnonzero(np.r_[True, by_request[1:] != by_request[:-1]]) if size else np.empty(0, dtype=np.intp)
    sums = np.cumsum(gains)
    base = np.repeat(np.r_[0.0, sums][starts], np.diff(np.r_[starts, size])) if size else sums
    after = 1.0 + sums - base
    # A request keeps `before` tokens until the node at `order` is taken; after its last node it stays where it is.
    until = np.full(size + 1, np.inf)
    np.minimum.at(until, order, after - gains)
    lasting = np.inf
    if size:
        ends = np.r_[starts[1:], size] - 1
        lasting = float(after[ends].min())
    if len(starts) < num_requests:
        lasting = min(lasting, 1.0)
    until[size] = min(until[size], lasting)
    return np.minimum.accumulate(until[::-1])[::-1]
