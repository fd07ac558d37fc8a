"""What single requests have shown of their own acceptance: a slot of some arrays for each, kept while it runs."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np

from smartspec.native import njit
from smartspec.policy.chances import PROPOSERS
from smartspec.policy.regression import Array, Ints

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
FIRST_SLOTS = 64

NOBODY = 0


class OwnEvidence:
    """For each proposer and slot [2, S]: acceptances beyond what the pair predicted (`excess`), the `trials` behind
    them, what chance alone makes their sum vary (`chance`), and the step the slot's request was `last_tried` in (-1:
    never). Slot 0 is nobody's, of whom nothing is known."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._asked: Sequence[str] = ()
        self._asked_slots = np.empty(0, dtype=np.intp)
        self.excess, self.trials, self.chance = (np.zeros((len(PROPOSERS), FIRST_SLOTS)) for _ in range(3))
        self.last_tried = np.full((len(PROPOSERS), FIRST_SLOTS), -1, dtype=np.intp)
        self._between = [BETWEEN_REQUESTS**2] * len(PROPOSERS)

    def spread(self, proposer: int) -> float:
        """Standard deviation of acceptance between requests."""
        return float(self._between[proposer] ** 0.5)

    def weight(self, proposer: int) -> float:
        """Trials after which a request trusts itself as much as its pair, whose deviation is its `excess` over trials
        and this weight. Empirical Bayes: the more requests differ beyond chance, the sooner each trusts itself."""
        return TRIAL_VARIANCE / self._between[proposer]

    def slots_of(self, requests: Sequence[str]) -> Ints:
        """The slots [R] of *requests*, nobody's where nothing was learned of one."""
        if requests != self._asked:  # mostly they are those of the step before
            self._asked = requests
            self._asked_slots = np.fromiter(map(self._slots.get, requests, repeat(NOBODY)), np.intp, len(requests))
        return self._asked_slots

    def slots_for(self, requests: Sequence[str]) -> Ints:
        """The slots [R] of *requests*, given to those that have none."""
        try:
            return np.fromiter(map(self._slots.__getitem__, requests), np.intp, len(requests))
        except KeyError:
            return np.array([self._slot_for(request) for request in requests], dtype=np.intp)

    def learn(
        self, slots: Ints, proposers: Ints, drafted: Ints, accepted: Ints, rows: Ints, rates: Array, step: int
    ) -> None:
        """Add one step's outcomes [N], each slot and proposer at most once: *accepted* of *drafted* tokens, where the
        pair predicted `rates[rows]` by position."""
        _learn(
            self.excess, self.trials, self.chance, self.last_tried,
            slots, proposers, drafted, accepted, rows, rates, step,
        )  # fmt: skip

    def forget(self, request: str) -> None:
        """Drop a finished request, learning from it how much requests differ."""
        slot = self._slots.pop(request, None)
        if slot is None:
            return
        for proposer in range(len(PROPOSERS)):
            trials = float(self.trials[proposer, slot])
            if trials >= LEAST_TRIALS:
                beyond = float(self.excess[proposer, slot] ** 2 - self.chance[proposer, slot]) / trials**2
                between = self._between[proposer]
                between += (beyond - between) / BETWEEN_FINISHED
                self._between[proposer] = min(max(between, LEAST_BETWEEN**2), MOST_BETWEEN**2)
        self._free.append(slot)
        self._asked = ()

    def __len__(self) -> int:
        return len(self._slots)

    def _slot_for(self, request: str) -> int:
        slot = self._slots.get(request)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._slots) + 1
            if slot >= self.excess.shape[1]:
                self._grow()
            self._slots[request] = slot
            self._asked = ()
            self.excess[:, slot] = self.trials[:, slot] = self.chance[:, slot] = 0.0
            self.last_tried[:, slot] = -1
        return slot

    def _grow(self) -> None:
        more = np.zeros_like(self.excess)
        self.excess, self.trials, self.chance = (
            np.concatenate((array, more), axis=1) for array in (self.excess, self.trials, self.chance)
        )
        self.last_tried = np.concatenate((self.last_tried, np.full(more.shape, -1, dtype=np.intp)), axis=1)


@njit(
    "(float64[:,::1], float64[:,::1], float64[:,::1], int64[:,::1], "
    "int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], float64[:,::1], int64)",
    cache=True,
)
def _learn(
    excess: Any,
    all_trials: Any,
    all_chance: Any,
    last_tried: Any,
    slots: Any,
    proposers: Any,
    drafted: Any,
    accepted: Any,
    rows: Any,
    rates: Any,
    step: int,
) -> None:
    """`OwnEvidence.learn` on its arrays, in place."""
    for i in range(len(slots)):
        # The first rejection is the last trial: what would have come after it was never put to the test.
        trials = min(accepted[i] + 1, drafted[i], rates.shape[1])
        if trials <= 0:
            continue
        kept = min(accepted[i], trials)
        expected, chance = 0.0, 0.0
        for j in range(trials):
            rate = rates[rows[i], j]
            expected += rate
            chance += rate * (1.0 - rate)
        p, slot = proposers[i], slots[i]
        fade = 0.5 ** (trials / HALF_LIFE_TRIALS)
        excess[p, slot] = excess[p, slot] * fade + kept - expected
        all_trials[p, slot] = all_trials[p, slot] * fade + trials
        all_chance[p, slot] = all_chance[p, slot] * fade * fade + chance
        last_tried[p, slot] = step
