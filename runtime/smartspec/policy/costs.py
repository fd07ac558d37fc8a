"""What nodes cost in the coming step: the time model's curves, read out once a step as tables.

A decision asks for thousands of costs, so they are tabulated by compiled loops; what they mean is `LatencyModel`'s.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartspec.native import njit
from smartspec.policy.latency import LatencyModel
from smartspec.policy.regression import Array, Ints
from smartspec.policy.types import BatchState


@dataclass(frozen=True)
class Costs:
    """Seconds by counts, for a step of R requests.

    `target` [B + 1] of the number of speculative nodes, from none to all that may be asked about (at least 2 R):
    everything that is not the draft, with the step's other tokens included. `draft` [2, P] is a draft forward as points
    (rows; seconds), straight between and beyond them, and as at the first one before it. `draft_context` is per token
    of context and draft forward. `sunk` are the seconds of `target` owed to prefill tokens that share the step: they
    are spent whatever is speculated, so they are no reason to speculate more, and goodput is taken over the rest.
    """

    target: Array
    draft: Array
    draft_context: float = 0.0
    sunk: float = 0.0

    def forward_seconds(self, rows: float) -> float:
        """Seconds of one draft forward of *rows* (at least 1), context aside."""
        return float(_forward(self.draft, rows))

    def forwards(self, first_rows: Array) -> Array:
        """The same for 0 (no forward: 0 seconds), 1, 2 ... rows, to beyond all of `first_rows` [R] and one for each."""
        table: Array = _forwards(self.draft, first_rows)
        return table

    def draft_seconds(self, lengths: Ints, uses_draft: NDArray[np.bool_], first_rows: Array, context: Array) -> float:
        """Seconds of all draft forwards when each request that `uses_draft` [R] drafts `lengths` [R] tokens;
        `first_rows` and `context` as in `Problem`."""
        return float(_drafts(self.draft, self.draft_context, lengths, uses_draft, first_rows, context))


def costs_of(batch: BatchState, latency: LatencyModel, context_tokens: int, most_nodes: int) -> Costs:
    """What up to *most_nodes* nodes cost in the coming step, by *latency*; *context_tokens* are those of the requests
    that decode."""
    num = len(batch.candidates)
    knots, target, draft, host = latency.curves()
    buckets = latency.buckets
    tabulated = _nodes(
        knots, target, host, buckets, most_nodes + 1, num + batch.prefill_tokens,
        float(context_tokens + batch.prefill_context_tokens), float(num + batch.num_prefills),
        float(batch.prefill_tokens),
    )  # fmt: skip
    sunk = 0.0
    if batch.prefill_tokens:
        decode = _nodes(knots, target, host, buckets, 1, num, float(context_tokens), float(num), 0.0)
        sunk = float(tabulated[0] - decode[0])
    return Costs(tabulated, _points(knots, draft), float(draft[-1]), sunk)


@njit(
    "float64[::1](float64[::1], float64[::1], float64[::1], int64[::1], int64, int64, float64, float64, float64)",
    cache=True,
    error_model="numpy",
)
def _nodes(
    knots: Any,
    target: Any,
    host: Any,
    buckets: Any,
    count: int,
    tokens: int,
    context: float,
    requests: float,
    prefill: float,
) -> Any:
    """Seconds of target and host together [count] with 0, 1, 2 ... nodes beside *tokens* others: what
    `LatencyModel.target_curve` says. `target` and `host` are coefficients in the order of `Regressors`' parts."""
    seconds = np.empty(count)
    fixed = target[-3] * context + target[-2] * requests + host[0] + host[1] * requests
    segment, below, bucket = 0, target[0], 0
    for node in range(count):
        total = tokens + node
        padded = total
        while bucket < len(buckets) and buckets[bucket] < total:
            bucket += 1
        if bucket < len(buckets):
            padded = buckets[bucket]
        while segment + 1 < len(knots) and padded > knots[segment + 1]:
            below += target[1 + segment] * (knots[segment + 1] - knots[segment])
            segment += 1
        curve = below + target[1 + segment] * max(padded - knots[segment], 0.0) if padded > 0 else 0.0
        seconds[node] = curve + fixed + target[-1] * (total - prefill) + host[2] * total
    return seconds


@njit("float64[:,::1](float64[::1], float64[::1])", cache=True)
def _points(knots: Any, draft: Any) -> Any:
    """A draft forward's curve as points [2, P], of its coefficients: one at each knot and one beyond the last."""
    num = len(knots)
    points = np.empty((2, num + 1))
    for i in range(num):
        points[0, i] = knots[i]
    points[0, num] = 2.0 * knots[num - 1]
    points[1, 0] = draft[0]
    for i in range(num):
        points[1, i + 1] = points[1, i] + draft[1 + i] * (points[0, i + 1] - points[0, i])
    return points


@njit("float64(float64[:,::1], float64)", cache=True)
def _forward(points: Any, rows: float) -> float:
    """Seconds at *rows* > 0 on the line through *points*."""
    x, y = points[0], points[1]
    if rows <= x[0]:
        return float(y[0])
    i = 0
    while i + 2 < len(x) and rows > x[i + 1]:
        i += 1
    return float(y[i] + (rows - x[i]) * (y[i + 1] - y[i]) / (x[i + 1] - x[i]))


@njit("float64[::1](float64[:,::1], float64[::1])", cache=True)
def _forwards(points: Any, first_rows: Any) -> Any:
    """`_forward` by rows."""
    most_rows = max(len(first_rows), int(np.ceil(first_rows.sum()))) + 1
    table = np.zeros(most_rows + 1)
    for rows in range(1, most_rows + 1):
        table[rows] = _forward(points, float(rows))
    return table


@njit("float64(float64[:,::1], float64, int64[::1], boolean[::1], float64[::1], float64[::1])", cache=True)
def _drafts(points: Any, draft_context: float, lengths: Any, uses_draft: Any, first_rows: Any, context: Any) -> float:
    """Sum over depths of a forward of all who draft that deep; the first one has `first_rows` for each."""
    deepest = 0
    rows, attended = 0.0, 0.0
    for r in range(len(lengths)):
        if uses_draft[r] and lengths[r] > 0:
            deepest = max(deepest, lengths[r])
            rows += first_rows[r]
            attended += context[r] * lengths[r]
    if not deepest:
        return 0.0
    seconds = _forward(points, rows) + draft_context * attended
    for depth in range(1, deepest):
        num = 0
        for r in range(len(lengths)):
            num += uses_draft[r] and lengths[r] > depth
        seconds += _forward(points, float(num))
    return float(seconds)
