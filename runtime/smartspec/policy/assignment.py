"""Who may speculate from which proposer: the ways worth trying to give each request one."""

from typing import Any

import numpy as np
from numba import njit

FEW_TORN = 2
"""Up to so many requests with both a draft and a match, every way to give each one proposer is tried."""


@njit(
    "boolean[:,::1](float64[:,::1], float64[:,::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "float64[::1], float64, float64)",
    cache=True,
    error_model="numpy",
)  # type: ignore[untyped-decorator]
def assignments(
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
    """Ways to give each request one proposer [W, R], True for the draft. Arguments are those of `scan.search`, *rate* a
    guess of the goodput."""
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
