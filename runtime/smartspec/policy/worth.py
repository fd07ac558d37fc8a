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

import numpy as np

from smartspec.policy.goodput import Costs, Problem
from smartspec.policy.regression import Array

TYPICAL_NODES = 2.0
"""Nodes per request over which the price of one is taken: curves have stairs, a single node's price says little."""


def long_run_worth(problem: Problem, costs: Costs) -> Array:
    """What a token of each request is worth [R], relative to their mean: 1 for a request like all others."""
    num, depth = problem.draft.shape
    nodes = TYPICAL_NODES * num
    plain, more = (costs.target(np.array([0.0, nodes])) - costs.sunk).tolist()
    row_seconds = max(0.0, more - plain) / nodes
    forward_seconds = float(costs.draft(np.array([float(num)]))[0]) / num
    length = np.arange(1, depth + 1)
    best = np.full(num, num / max(plain, 1e-9))
    for chances, seconds in ((problem.draft, row_seconds + forward_seconds), (problem.lookup, row_seconds)):
        rates = (1.0 + np.cumsum(chances, axis=1)) / (max(plain, 1e-9) / num + seconds * length)
        np.maximum(best, rates.max(axis=1), out=best)
    worth: Array = 1.0 / best
    worth *= num / worth.sum()
    return worth
