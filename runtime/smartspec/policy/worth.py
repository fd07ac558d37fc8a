"""What a token is worth to the long run, for each request: the seconds that it saves.

Goodput of the coming step alone, every token counting alike, gives to requests that are easy to draft for and lets the
hard ones straggle. But a request needs a certain number of tokens, easy or not: a batch whose easy requests run ahead
is soon a batch of hard ones. What a server does in the long run is to finish requests, and a request costs, at each of
its steps, a share of what the step costs at all and the price of its own nodes. The throughput of N requests that are
replaced as they finish is greatest when each has the least (share + own price) / (own tokens per step). So a token of
a request is worth the seconds that this request spends on one at its own best. (Renewal reward with the number in work
held fixed. Of linear costs it is exact: a node's gain times this worth equals its price just where the optimum of the
long run has it.) In a batch of equals each is worth 1, and goodput is the step's.
"""

from typing import Any

import numpy as np

from smartspec.native import njit
from smartspec.policy.costs import Costs
from smartspec.policy.regression import Array

TYPICAL_NODES = 2
"""Nodes per request over which the price of one is taken: curves have stairs, a single node's price says little."""


def long_run_worth(draft: Array, lookup: Array, costs: Costs) -> Array:
    """What a token of each request is worth [R], relative to their mean: 1 for a request like all others. `draft` and
    `lookup` are the chances [R, K] of `Problem`."""
    num = len(draft)
    nodes = TYPICAL_NODES * num
    plain, more = float(costs.target[0]) - costs.sunk, float(costs.target[nodes]) - costs.sunk
    row_seconds = max(0.0, more - plain) / nodes
    forward_seconds = costs.forward_seconds(num) / num
    share = max(plain, 1e-9) / num
    worth: Array = _worth(draft, lookup, share, row_seconds + forward_seconds, row_seconds)
    return worth


@njit("float64[::1](float64[:,::1], float64[:,::1], float64, float64, float64)", cache=True, error_model="numpy")
def _worth(draft: Any, lookup: Any, share: float, drafted_seconds: float, copied_seconds: float) -> Any:
    """Least (share + price) / tokens of each request over all its lengths and proposers, in units of the mean [R]."""
    num, depth = draft.shape
    worth = np.empty(num)
    for r in range(num):
        best, drafted, copied = 1.0 / share, 1.0, 1.0
        for j in range(depth):
            drafted += draft[r, j]
            copied += lookup[r, j]
            best = max(
                best,
                drafted / (share + drafted_seconds * (j + 1)),
                copied / (share + copied_seconds * (j + 1)),
            )
        worth[r] = 1.0 / best
    return worth * (num / worth.sum())
