"""The optimiser's inner loop, compiled: every prefix of the sorted nodes, within every greatest depth.

A plain loop over numbers, because a step's decision must take a small share of the step, and a batch of 256 requests
has some 2,000 nodes to be weighed at up to 9 depths. Compiled once at import and cached on disk by numba.
"""

from typing import Any

import numpy as np
from numba import njit

FORCED = 1e6
"""Value that puts a node its request insists on before every other."""
TIE = 1e-9
"""Keeps nodes of equal value in the order of their positions, which prefix-closure needs."""
GOOD_GUESS = 1.25
"""A guess of the goodput within this factor weighs costs well enough; another is replaced by what it led to."""
FEW_TORN = 2
"""Up to so many requests with both a draft and a match, every way to give each one proposer is tried."""
TOKENS, WORTH, SECONDS, GOODPUT, TPOT = range(5)
"""The figures of a plan, in order; a negative goodput says that there is no such plan."""
PLAIN, DRAFTING = range(2)
"""The kinds of plans: without the draft, and with it."""

_SIGNATURE = "(float64[:,::1], float64[::1], boolean[::1], int64[::1], float64[::1], float64[::1], float64[::1], \
float64[::1], float64, float64, float64, float64)"


@njit(cache=True)  # type: ignore[untyped-decorator]
def _along(seconds: Any, rows: float) -> float:
    """A curve tabulated at 0, 1, 2 ... read between its points."""
    below = min(int(rows), len(seconds) - 2)
    return float(seconds[below] + (rows - below) * (seconds[below + 1] - seconds[below]))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _slowest(request: Any, gain: Any, at_depth: Any, limit: int, most: int, own: Any, slowest: Any) -> None:
    """Expected tokens of the request that keeps fewest, for each number of leading nodes, of which *most* are taken and
    those of drafts within *limit*. Who keeps few in the end kept no more before, so walking back needs only to look at
    who loses a node."""
    own[:] = 1.0
    end = nodes = 0
    while end < len(gain) and nodes < most:
        if at_depth[end] <= limit:
            own[request[end]] += gain[end]
            nodes += 1
        end += 1
    slowest[end] = own.min()
    for i in range(end - 1, -1, -1):
        slowest[i] = slowest[i + 1]
        if at_depth[i] <= limit:
            own[request[i]] -= gain[i]
            slowest[i] = min(slowest[i], own[request[i]])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _is_better(goodput: float, tpot: float, than_goodput: float, than_tpot: float, tpot_target: float) -> bool:
    """Whether a plan is to be preferred to another (of negative goodput: none): for its goodput within the target, or
    for being nearer to a target that neither keeps."""
    if tpot <= tpot_target:
        return than_tpot > tpot_target or goodput > than_goodput
    return than_goodput < 0.0 or tpot < than_tpot


@njit(_SIGNATURE, cache=True, error_model="numpy", nogil=True)  # type: ignore[untyped-decorator]
def scan(
    gains: Any,
    worth: Any,
    drafted: Any,
    forced: Any,
    first_rows: Any,
    context: Any,
    target: Any,
    draft: Any,
    draft_context: float,
    sunk: float,
    tpot_target: float,
    rate: float,
) -> Any:
    """The best plans without and with the draft when each request has one proposer.

    `gains` [R, K] are survival probabilities under that proposer, the draft model where `drafted` [R]; `worth`,
    `forced`, `first_rows` and `context` as in `Problem`. `target[b]` are seconds with b nodes (its length bounds them),
    `draft[n]` seconds of a draft forward of n rows. *rate* weighs unequal costs in tokens per second; *tpot_target* may
    be infinite. Returns lengths [2, R], and figures [2, 5]: tokens, worth, seconds, goodput (negative: there is no such
    plan) and TPOT.
    """
    num, depth = gains.shape
    most_rows = len(draft) - 1

    lag = 1.0
    for r in range(num):
        if drafted[r]:
            lag = max(lag, first_rows[r])
    last = min(most_rows, int(np.ceil(lag)) + 1)
    row_seconds = (draft[last] - draft[1]) / (last - 1) if last > 1 else 0.0

    # Every node by its value, which falls along a request's chain, so that any prefix of the sorted is a plan.
    value, place = np.empty(num * depth), np.empty(num * depth, dtype=np.int64)
    count = num_forced = 0
    for r in range(num):
        room = 0
        while room < depth and gains[r, room] > 0.0:
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
                own = FORCED - j
            elif j <= block:
                own = mean
            value[count] = TIE * j - own
            place[count] = r * depth + j
            count += 1
    order = place[np.argsort(value[:count])]
    request, gain = order // depth, np.empty(count)
    at_depth = np.zeros(count, dtype=np.int64)  # in the draft; 0: copied by lookup
    for i in range(count):
        r, j = request[i], order[i] - request[i] * depth
        gain[i] = gains[r, j]
        at_depth[i] = j + 1 if drafted[r] else 0
    most = len(target) - 1

    # What each node adds to the draft's forwards: it depends on how many of its depth come before it, and on nothing
    # else, so that it is the same for every greatest depth.
    extra, gained = np.zeros(count), np.empty(count)
    rows = np.zeros(depth + 1)
    least, deepest = 0, 0
    for i in range(count):
        r, j = request[i], at_depth[i]
        gained[i] = gain[i] * worth[r]
        if j:
            before = rows[j]
            rows[j] += first_rows[r] if j == 1 else 1.0
            extra[i] = _along(draft, rows[j]) - _along(draft, before) + draft_context * context[r]
            deepest = max(deepest, j)
            if i < num_forced:
                least = max(least, j)

    figures, ends = np.full((2, 5), -1.0), np.zeros((2, 2), dtype=np.int64)
    bound = tpot_target < np.inf
    plain, first = worth.sum(), min(num_forced, most)
    own, slowest = np.empty(num), np.zeros(count + 1)
    for limit in range(least, deepest + 1):
        if bound:
            _slowest(request, gain, at_depth, limit, most, own, slowest)
        tokens, total, drafting, nodes = float(num), plain, False, 0
        draft_seconds = 0.0
        for i in range(-1, count):
            if i >= 0:
                if at_depth[i] > limit:
                    continue
                if nodes == most:
                    break
                drafting |= at_depth[i] > 0
                draft_seconds += extra[i]
                tokens += gain[i]
                total += gained[i]
                nodes += 1
            if nodes < first:
                continue
            seconds = target[nodes] + draft_seconds
            goodput = total / max(seconds - sunk, 1e-9)
            tpot = seconds / slowest[i + 1] if bound else 0.0
            kind = 1 if drafting else 0
            if _is_better(goodput, tpot, figures[kind, GOODPUT], figures[kind, TPOT], tpot_target):
                figures[kind] = (tokens, total, seconds, goodput, tpot)
                ends[kind] = (i + 1, limit)

    lengths = np.zeros((2, num), dtype=np.int64)
    for kind in range(2):
        for i in range(ends[kind, 0]):
            lengths[kind, request[i]] += at_depth[i] <= ends[kind, 1]
    return lengths, figures


@njit(
    "boolean[:,::1](float64[:,::1], float64[:,::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "float64[::1], float64, float64)",
    cache=True,
    error_model="numpy",
)  # type: ignore[untyped-decorator]
def _assignments(
    draft: Any,
    lookup: Any,
    worth: Any,
    first_rows: Any,
    context: Any,
    target: Any,
    forwards: Any,
    draft_context: float,
    rate: float,
) -> Any:
    """Ways to give each request one proposer [W, R], True for the draft."""
    num, depth = draft.shape
    can_draft, can_copy = draft[:, 0] > 0.0, lookup[:, 0] > 0.0
    torn = np.flatnonzero(can_draft & can_copy)
    if not can_copy.any() or not can_draft.any():
        return can_draft.copy().reshape(1, num)
    if len(torn) <= FEW_TORN:
        ways = np.empty((1 << len(torn), num), dtype=np.bool_)
        for way in range(len(ways)):
            ways[way] = can_draft
            for i in range(len(torn)):
                ways[way, torn[i]] = (way >> (len(torn) - 1 - i)) & 1 == 1
        return ways
    # By value: what each chain brings its request when a second is worth `rate` tokens and nodes cost their slope;
    # and nobody by the draft, whose forwards may cost more than they bring.
    nodes = min(len(target) - 1, 4 * num)
    slope = (target[nodes] - target[0]) / max(1, nodes)
    row = (forwards[num + 1] - forwards[1]) / num
    ways = np.zeros((2, num), dtype=np.bool_)
    for r in range(num):
        drafted = copied = 0.0
        by_draft, by_lookup = -np.inf, -np.inf
        for j in range(depth):
            drafted += draft[r, j] * worth[r] - rate * (slope + row + draft_context * context[r])
            copied += lookup[r, j] * worth[r] - rate * slope
            by_draft, by_lookup = max(by_draft, drafted), max(by_lookup, copied)
        late = rate * row * (first_rows[r] - 1.0)
        ways[0, r] = can_draft[r] and not (can_copy[r] and by_lookup >= by_draft - late)
    return ways


@njit(
    "Tuple((int64[::1], boolean[::1], UniTuple(float64, 5)))(float64[:,::1], float64[:,::1], float64[::1], int64[::1], "
    "float64[::1], float64[::1], float64[::1], float64[::1], float64, float64, float64, float64, float64, boolean)",
    cache=True,
    error_model="numpy",
    nogil=True,
)  # type: ignore[untyped-decorator]
def search(
    draft: Any,
    lookup: Any,
    worth: Any,
    forced: Any,
    first_rows: Any,
    context: Any,
    target: Any,
    forwards: Any,
    draft_context: float,
    sunk: float,
    tpot_target: float,
    rate: float,
    margin: float,
    drafting: bool,
) -> Any:
    """`goodput.optimise` on arrays: the best of `scan` over some assignments of proposers to requests.

    Returns lengths [R], who is assigned to the draft [R], and the plan's figures. `target` [B + 1] bounds the plan's
    nodes, `forwards[n]` are seconds of a draft forward of n rows.
    """
    num, depth = draft.shape
    may_differ = first_rows.max() > 2.0 or draft_context > 0.0 or (lookup[:, 0] > 0.0).any()
    best = np.full((2, 5), -1.0)
    lengths = np.zeros((2, num), dtype=np.int64)
    assigned = np.zeros((2, num), dtype=np.bool_)
    reached = -1.0
    for attempt in range(2):
        guess = reached if attempt else rate
        ways = _assignments(draft, lookup, worth, first_rows, context, target, forwards, draft_context, guess)
        for w in range(len(ways)):
            way, gains = ways[w], np.empty((num, depth))
            for r in range(num):
                gains[r] = draft[r] if way[r] else lookup[r]
            reach, figures = scan(
                gains, worth, way, forced, first_rows, context, target, forwards, draft_context, sunk, tpot_target,
                guess,
            )  # fmt: skip
            for kind in (PLAIN, DRAFTING):
                if figures[kind, GOODPUT] >= 0.0:
                    reached = max(reached, figures[kind, GOODPUT])
                    if _is_better(
                        figures[kind, GOODPUT], figures[kind, TPOT], best[kind, GOODPUT], best[kind, TPOT], tpot_target
                    ):
                        best[kind], lengths[kind], assigned[kind] = figures[kind], reach[kind], way
        if not may_differ or 1.0 / GOOD_GUESS < reached / rate < GOOD_GUESS:
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
    found = best[chosen]
    return lengths[chosen], assigned[chosen], (found[TOKENS], found[WORTH], found[SECONDS], found[GOODPUT], found[TPOT])
