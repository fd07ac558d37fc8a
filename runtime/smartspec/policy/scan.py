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
            best, best_tpot = figures[kind, 3], figures[kind, 4]
            if tpot <= tpot_target:
                better = best_tpot > tpot_target or goodput > best
            else:
                better = best < 0.0 or tpot < best_tpot
            if better:
                figures[kind] = (tokens, total, seconds, goodput, tpot)
                ends[kind] = (i + 1, limit)

    lengths = np.zeros((2, num), dtype=np.int64)
    for kind in range(2):
        for i in range(ends[kind, 0]):
            lengths[kind, request[i]] += at_depth[i] <= ends[kind, 1]
    return lengths, figures
