"""The optimiser's inner loop, compiled: every prefix of the sorted nodes, within every greatest depth.

A plain loop over numbers, because a step's decision must take a small share of the step, and a batch of 256 requests
has some 2,000 nodes to be weighed at up to 9 depths. Compiled once at import and cached on disk by numba.
"""

from typing import Any

import numpy as np

from smartspec.native import njit

GOOD_GUESS = 1.25
"""A guess of the goodput within this factor weighs costs well enough; another is replaced by what it led to."""
FEW_TORN = 2
"""Up to so many requests with both a draft and a match, every way to give each one proposer is tried."""
SURELY = 0.95
"""How much worse than plain decoding a plan must be to be passed over: by more than any margin for switching."""
SPREAD = 16.0
"""Values, in tokens, below the best one that are told apart by buckets: whatever is worse is seldom and never taken."""
TIE = 1e-9
"""Keeps nodes of equal value in the order of their positions, which prefix-closure needs."""
TOKENS, WORTH, SECONDS, GOODPUT, TPOT = range(5)
"""The figures of a plan, in order; a negative goodput says that there is no such plan."""
PLAIN, DRAFTING = range(2)  # the kinds of plans: without the draft, and with it


@njit(cache=True)
def _along(seconds: Any, rows: float) -> float:
    """A curve tabulated at 0, 1, 2 ... read between its points."""
    below = min(int(rows), len(seconds) - 2)
    return float(seconds[below] + (rows - below) * (seconds[below + 1] - seconds[below]))


@njit(cache=True)
def _ascending(value: Any, num: int) -> Any:
    """Indices [N] that sort the first N = *num* of `value`, those of equal values in order.

    Values are spread over their range, so that buckets of it hold a few each, which are then sorted by insertion: a
    general sort takes several times as long, for its branches cannot be predicted.
    """
    order, bucket, ends = np.empty(num, dtype=np.int64), np.empty(num, dtype=np.int64), np.zeros(num, dtype=np.int64)
    low, high = np.inf, -np.inf
    for i in range(num):
        low, high = min(low, value[i]), max(high, value[i])
    scale = (num - 1) / min(high - low, SPREAD) if high > low else 0.0
    for i in range(num):
        bucket[i] = int(min((value[i] - low) * scale, num - 1.0))
        ends[bucket[i]] += 1
    begin = 0
    for b in range(num):
        begin, ends[b] = begin + ends[b], begin
    for i in range(num):
        order[ends[bucket[i]]] = i
        ends[bucket[i]] += 1
    for i in range(1, num):
        node, at = order[i], i
        while at and value[order[at - 1]] > value[node]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = node
    return order


@njit(cache=True)
def _floor(plain: float, target: Any, sunk: float) -> float:
    """What a node must bring to be weighed. One that brings less than the cheapest takes, at the goodput of plain
    decoding, can be left out of any plan that is better than that, and the plan gains. A request's first one is weighed
    all the same, so that there is a plan with the draft wherever there may be one."""
    least = np.inf
    for nodes in range(1, len(target)):
        least = min(least, target[nodes] - target[nodes - 1])
    return float(SURELY * plain * max(least, 0.0) / max(target[0] - sunk, 1e-9))


@njit(cache=True)
def _slowest(request: Any, gain: Any, count: int, own: Any, slowest: Any) -> None:
    """Expected tokens of the request that keeps fewest, for each number of the first *count* nodes taken. Who keeps few
    in the end kept no more before, so walking back needs only to look at who loses a node."""
    own.fill(1.0)
    for i in range(count):
        own[request[i]] += gain[i]
    slowest[count] = own.min()
    for i in range(count - 1, -1, -1):
        own[request[i]] -= gain[i]
        slowest[i] = min(slowest[i + 1], own[request[i]])


@njit(cache=True)
def _is_better(goodput: float, tpot: float, than_goodput: float, than_tpot: float, tpot_target: float) -> bool:
    """Whether a plan is to be preferred to another (of negative goodput: none): for its goodput within the target, or
    for being nearer to a target that neither keeps."""
    if tpot <= tpot_target:
        return than_tpot > tpot_target or goodput > than_goodput
    return than_goodput < 0.0 or tpot < than_tpot


@njit(cache=True, error_model="numpy", nogil=True)
def scan(
    gains: Any, worth: Any, drafted: Any, forced: Any, first_rows: Any, context: Any, target: Any, draft: Any,
    draft_context: float, sunk: float, tpot_target: float, rate: float,
) -> Any:  # fmt: skip
    """The best plans without and with the draft when each request has one proposer.

    `gains` [R, K] are survival probabilities under that proposer, the draft model where `drafted` [R]; `worth`,
    `forced`, `first_rows` and `context` as in `Problem`. `target[b]` are seconds with b nodes (its length bounds them),
    `draft[n]` seconds of a draft forward of n rows. *rate* weighs unequal costs in tokens per second; *tpot_target* may
    be infinite. Returns lengths [2, R], and figures [2, 5]: tokens, worth, seconds, goodput (negative: there is no such
    plan) and TPOT.
    """
    num, depth = gains.shape
    most_rows = len(draft) - 1

    lag = max(1.0, np.where(drafted, first_rows, 1.0).max())
    last = min(most_rows, int(np.ceil(lag)) + 1)
    row_seconds = (draft[last] - draft[1]) / (last - 1) if last > 1 else 0.0

    # Every node by its value, which falls along a request's chain, so that any prefix of the sorted is a plan.
    value = np.empty(num * depth)
    owner, place = np.empty(num * depth, dtype=np.int64), np.empty(num * depth, dtype=np.int64)
    count, num_forced, plain, dearest = 0, 0, worth.sum(), worth.max()
    floor = _floor(plain, target, sunk) if tpot_target == np.inf and forced.max() <= 0 else 0.0
    for r in range(num):
        room = 0
        while room < depth and gains[r, room] > 0.0 and (not room or gains[r, room] * worth[r] > floor):
            room += 1
        if forced[r] >= 0:
            room = min(room, forced[r])
            num_forced += room
        price = rate * draft_context * context[r] if drafted[r] else 0.0
        late = rate * row_seconds * (first_rows[r] - 1.0) if drafted[r] else 0.0
        # A first node dearer than those behind it: they are worth taking together or not at all, so the first ones
        # share their mean value (the concave hull of the chain's value).
        total, mean, block = -late, -np.inf, -1
        for j in range(room):
            total += gains[r, j] * worth[r] - price
            if total / (j + 1) > mean:
                mean, block = total / (j + 1), j
        for j in range(room):
            own = gains[r, j] * worth[r] - price
            if forced[r] >= 0:
                own = dearest + 2.0 - j / depth  # before all that are free
            elif j <= block:
                own = mean
            value[count] = TIE * j - own
            owner[count], place[count] = r, j
            count += 1
    order = _ascending(value, count)

    # What each node adds to the draft's forwards depends on how many of its depth come before it, and on nothing else,
    # so that it is the same for every greatest depth.
    request, at_depth = np.empty(count, dtype=np.int64), np.zeros(count, dtype=np.int64)  # in the draft; 0: by lookup
    gain, gained, extra = np.empty(count), np.empty(count), np.zeros(count)
    rows, seconds = np.zeros(depth + 1), np.zeros(depth + 1)
    least, deepest = 0, 0
    for i in range(count):
        r = request[i] = owner[order[i]]
        gain[i] = gains[r, place[order[i]]]
        gained[i] = gain[i] * worth[r]
        if drafted[r]:
            j = place[order[i]] + 1
            before = seconds[j]
            rows[j] += first_rows[r] if j == 1 else 1.0
            seconds[j] = _along(draft, rows[j])
            extra[i] = seconds[j] - before + draft_context * context[r]
            at_depth[i] = j
            deepest = max(deepest, j)
            if i < num_forced:
                least = max(least, j)

    # All prefixes of what is within a greatest depth, from the deepest on: each pass leaves out one depth more.
    most, first = len(target) - 1, min(num_forced, len(target) - 1)
    goodputs, tpots = np.array([-1.0, -1.0]), np.zeros(2)
    ends, limits = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    is_bound, left = tpot_target < np.inf, count
    passed, own, slowest = at_depth.copy(), np.empty(num), np.zeros(count + 1)
    whose, brings, valued, costs = request.copy(), gain.copy(), gained.copy(), extra.copy()
    for limit in range(deepest, least - 1, -1):
        end = min(left, most)
        if is_bound:
            _slowest(whose, brings, end, own, slowest)
        total, draft_seconds, kind = plain, 0.0, PLAIN
        for nodes in range(end + 1):
            if nodes:
                total += valued[nodes - 1]
                draft_seconds += costs[nodes - 1]
                if passed[nodes - 1]:
                    kind = DRAFTING
            if nodes < first:
                continue
            took = target[nodes] + draft_seconds
            goodput = total / max(took - sunk, 1e-9)
            tpot = took / slowest[nodes] if is_bound else 0.0
            if _is_better(goodput, tpot, goodputs[kind], tpots[kind], tpot_target):
                goodputs[kind], tpots[kind], ends[kind], limits[kind] = goodput, tpot, nodes, limit
        stay = 0
        for i in range(left):
            if is_bound:
                whose[stay], brings[stay] = whose[i], brings[i]
            valued[stay], costs[stay], passed[stay] = valued[i], costs[i], passed[i]
            stay += passed[i] < limit
        left = stay

    figures, lengths = np.zeros((2, 5)) - 1.0, np.zeros((2, num), dtype=np.int64)
    for kind in (PLAIN, DRAFTING):
        if goodputs[kind] < 0.0:
            continue
        tokens, total, draft_seconds, nodes = float(num), plain, 0.0, 0
        for i in range(count):
            if nodes == ends[kind]:
                break
            if at_depth[i] <= limits[kind]:
                lengths[kind, request[i]] += 1
                tokens += gain[i]
                total += gained[i]
                draft_seconds += extra[i]
                nodes += 1
        took = target[nodes] + draft_seconds
        for i, figure in enumerate((tokens, total, took, goodputs[kind], tpots[kind])):
            figures[kind, i] = figure
    return lengths, figures


@njit(cache=True, error_model="numpy")
def _assignments(
    draft: Any, lookup: Any, worth: Any, forced: Any, first_rows: Any, context: Any, target: Any, forwards: Any,
    draft_context: float, rate: float,
) -> Any:  # fmt: skip
    """Ways to give each request one proposer [W, R], True for the draft. *rate* is a guess of the goodput."""
    num, depth = draft.shape
    can_draft, can_copy = draft[:, 0] > 0.0, lookup[:, 0] > 0.0
    torn = np.flatnonzero(can_draft & can_copy)
    if len(torn) <= FEW_TORN:
        ways = np.empty((1 << len(torn), num), dtype=np.bool_)
        for way in range(len(ways)):
            for r in range(num):
                ways[way, r] = can_draft[r]
            for i in range(len(torn)):
                ways[way, torn[i]] = (way >> (len(torn) - 1 - i)) & 1 == 1
        return ways
    # By value: what each chain brings its request when a second is worth `rate` tokens and nodes cost their slope; and
    # nobody who is free by the draft, whose forwards may cost more than they bring. Without its drafts the first way is
    # the same, unless somebody who drafts there could copy or insists.
    nodes = min(len(target) - 1, 4 * num)
    slope = (target[nodes] - target[0]) / max(1, nodes)
    row = (forwards[num + 1] - forwards[1]) / num
    ways, differ = np.zeros((2, num), dtype=np.bool_), False
    for r in range(num):
        drafted = copied = 0.0
        by_draft, by_lookup = -np.inf, -np.inf
        for j in range(depth):
            drafted += draft[r, j] * worth[r] - rate * (slope + row + draft_context * context[r])
            copied += lookup[r, j] * worth[r] - rate * slope
            by_draft, by_lookup = max(by_draft, drafted), max(by_lookup, copied)
        late = rate * row * (first_rows[r] - 1.0)
        ways[0, r] = can_draft[r] and not (can_copy[r] and by_lookup >= by_draft - late)
        ways[1, r] = ways[0, r] and forced[r] > 0
        differ |= ways[0, r] and (can_copy[r] or forced[r] > 0)
    return ways if differ else ways[:1]


@njit(
    "Tuple((int64[::1], boolean[::1], int64, UniTuple(float64, 5)))(float64[:,::1], float64[:,::1], float64[::1], "
    "int64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64, float64, float64, float64, float64, "
    "boolean)",
    cache=True,
    error_model="numpy",
    nogil=True,
)
def search(
    draft: Any, lookup: Any, worth: Any, forced: Any, first_rows: Any, context: Any, target: Any, forwards: Any,
    draft_context: float, sunk: float, tpot_target: float, rate: float, margin: float, drafting: bool,
) -> Any:  # fmt: skip
    """`goodput.optimise` on arrays: the best of `scan` over some ways to give each request one proposer, and over
    others again when the guess of the goodput, *rate*, was not good enough to weigh unequal costs by. `target` [B + 1]
    bounds the nodes, `forwards[n]` are seconds of a draft forward of n rows.

    Returns lengths [R], who drafts [R], the sum of lengths, and the plan's figures.
    """
    num, depth = draft.shape
    costs_differ = draft_context > 0.0 or first_rows.max() > 2.0 or lookup[:, 0].max() > 0.0
    best, reached = np.zeros((2, 5)) - 1.0, -1.0
    lengths, drafts = np.zeros((2, num), dtype=np.int64), np.zeros((2, num), dtype=np.bool_)
    for attempt in range(2):
        guess = reached if attempt else rate
        ways = _assignments(draft, lookup, worth, forced, first_rows, context, target, forwards, draft_context, guess)
        for w in range(len(ways)):
            way, gains = ways[w], np.empty((num, depth))
            for r in range(num):
                for j in range(depth):
                    gains[r, j] = draft[r, j] if way[r] else lookup[r, j]
            found, figures = scan(
                gains, worth, way, forced, first_rows, context, target, forwards, draft_context, sunk, tpot_target,
                guess,
            )  # fmt: skip
            for kind in (PLAIN, DRAFTING):
                goodput, tpot = figures[kind, GOODPUT], figures[kind, TPOT]
                if goodput < 0.0:
                    continue
                reached = max(reached, goodput)
                if _is_better(goodput, tpot, best[kind, GOODPUT], best[kind, TPOT], tpot_target):
                    for i in range(5):  # by elements throughout: whole rows take numba seconds more to compile
                        best[kind, i] = figures[kind, i]
                    for r in range(num):
                        lengths[kind, r], drafts[kind, r] = found[kind, r], way[r] and found[kind, r] > 0
        if not costs_differ or 1.0 / GOOD_GUESS < reached / rate < GOOD_GUESS:
            break
    stay, leave = (DRAFTING, PLAIN) if drafting else (PLAIN, DRAFTING)
    kept, kept_tpot = best[stay, GOODPUT], best[stay, TPOT]
    other, other_tpot = best[leave, GOODPUT], best[leave, TPOT]
    if kept < 0.0 or other < 0.0:
        goes = kept < 0.0
    elif max(kept_tpot, other_tpot) > tpot_target:
        goes = _is_better(other, other_tpot, kept, kept_tpot, tpot_target)
    else:
        goes = other > kept * (1.0 + margin)
    chosen = leave if goes else stay
    nodes = lengths[chosen].sum()
    tokens, total, seconds = best[chosen, TOKENS], best[chosen, WORTH], best[chosen, SECONDS]
    return lengths[chosen], drafts[chosen], nodes, (tokens, total, seconds, best[chosen, GOODPUT], best[chosen, TPOT])
