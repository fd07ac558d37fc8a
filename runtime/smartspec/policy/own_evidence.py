"""What single requests have shown of their own acceptance, as arrays, for hundreds of them at every step."""

from collections.abc import Sequence

import numpy as np

from smartspec.policy.goodput import Ints
from smartspec.policy.regression import Array

HALF_LIFE_TRIALS = 96.0
"""Trials after which a request's own evidence counts half."""
BETWEEN_REQUESTS = 0.08
"""Standard deviation of acceptance between requests, as believed before any has finished."""
LEAST_BETWEEN, MOST_BETWEEN = 0.02, 0.25
BETWEEN_FINISHED = 40.0
"""The spread between requests is a mean over about this many finished ones."""
LEAST_TRIALS = 8.0
"""A request with fewer trials says nothing of how much requests differ."""
TRIAL_VARIANCE = 0.2
"""Variance of one trial, a typical a(1 - a)."""

_NOBODY = 0


class OwnEvidence:
    """For each request of one proposer: acceptances beyond what its pair predicted (`excess`), the trials behind them,
    what chance alone makes their sum vary (`chance`), and the step it was last tried in. Row 0 is nobody's."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._excess, self._trials, self._chance = (np.zeros(64) for _ in range(3))
        self._last_tried = np.full(64, -1, dtype=np.intp)
        self._between = BETWEEN_REQUESTS**2

    @property
    def spread(self) -> float:
        """Standard deviation of acceptance between requests."""
        return float(self._between**0.5)

    def shift(self, requests: Sequence[str]) -> Array:
        """How much more each request is accepted than its pair [R], shrunk by how little it was tried. Empirical
        Bayes: the more requests differ beyond chance, the sooner each one trusts itself."""
        rows = self._rows_of(requests)
        weight = TRIAL_VARIANCE / self._between
        shifts: Array = self._excess[rows] / (self._trials[rows] + weight)
        return shifts

    def last_tried(self, requests: Sequence[str]) -> Ints:
        """The step each request was last tried in [R], -1 for never."""
        return self._last_tried[self._rows_of(requests)]

    def learn(self, requests: Sequence[str], trials: Ints, accepted: Ints, expected: Array, chance: Array) -> None:
        """Add one step's outcomes [R], each request at most once; *expected* acceptances and their variance are what
        the pair predicted of the same trials."""
        rows = np.array([self._row_for(request) for request in requests], dtype=np.intp)
        fade = 0.5 ** (trials / HALF_LIFE_TRIALS)
        self._excess[rows] = self._excess[rows] * fade + accepted - expected
        self._trials[rows] = self._trials[rows] * fade + trials
        self._chance[rows] = self._chance[rows] * fade * fade + chance

    def mark(self, requests: Sequence[str], step: int) -> None:
        """Note that *requests* were tried in *step*."""
        self._last_tried[self._rows_of(requests)] = step
        self._last_tried[_NOBODY] = -1

    def forget(self, request: str) -> None:
        """Drop a finished request, learning from it how much requests differ."""
        row = self._rows.pop(request, None)
        if row is None:
            return
        if self._trials[row] >= LEAST_TRIALS:
            beyond = float(self._excess[row] ** 2 - self._chance[row]) / float(self._trials[row]) ** 2
            between = self._between + (beyond - self._between) / BETWEEN_FINISHED
            self._between = min(max(between, LEAST_BETWEEN**2), MOST_BETWEEN**2)
        self._free.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def _rows_of(self, requests: Sequence[str]) -> Ints:
        get = self._rows.get
        return np.array([get(request, _NOBODY) for request in requests], dtype=np.intp)

    def _row_for(self, request: str) -> int:
        row = self._rows.get(request)
        if row is None:
            row = self._free.pop() if self._free else len(self._rows) + 1
            if row >= len(self._excess):
                self._grow()
            self._rows[request] = row
            self._excess[row] = self._trials[row] = self._chance[row] = 0.0
            self._last_tried[row] = -1
        return row

    def _grow(self) -> None:
        more = len(self._excess)
        self._excess, self._trials, self._chance = (
            np.concatenate((array, np.zeros(more))) for array in (self._excess, self._trials, self._chance)
        )
        self._last_tried = np.concatenate((self._last_tried, np.full(more, -1, dtype=np.intp)))
