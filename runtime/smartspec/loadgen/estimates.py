"""Ratios with intervals: paired, because modes met the same requests; by a bootstrap over rounds and requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
Rounds = Sequence[Sequence[float]]
"""One value per request, by round: the same rounds and requests for every mode."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of means with the interval that holds it with 95 %; *rounds* and *pairs* are what it rests on.

    One round can show the spread between requests only, not between runs: then `low` and `high` are too close.
    """

    middle: float
    low: float
    high: float
    rounds: int
    pairs: int

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(numerator: Rounds, denominator: Rounds, *, seed: int = 0) -> Ratio:
    """Mean of *numerator* over mean of *denominator*, both of the same shape; raises ValueError where they differ.

    Two stages: rounds are drawn with replacement, then pairs within each drawn round.
    """
    if [len(values) for values in numerator] != [len(values) for values in denominator]:
        raise ValueError("numerator and denominator must have the same rounds with the same number of requests")
    if not numerator or not all(len(values) for values in numerator):
        raise ValueError("no pairs to compare")
    above = [np.asarray(values, dtype=float) for values in numerator]
    below = [np.asarray(values, dtype=float) for values in denominator]
    rng = np.random.default_rng(seed)
    sums = np.zeros((2, RESAMPLES))
    for drawn in rng.integers(len(above), size=(len(above), RESAMPLES)):
        for turn, (a, b) in enumerate(zip(above, below, strict=True)):
            resamples = np.flatnonzero(drawn == turn)
            picks = rng.integers(len(a), size=(len(resamples), len(a)))
            sums[0, resamples] += a[picks].sum(axis=1)
            sums[1, resamples] += b[picks].sum(axis=1)
    low, high = np.quantile(sums[0] / sums[1], [0.025, 0.975])
    middle = sum(a.sum() for a in above) / sum(b.sum() for b in below)
    return Ratio(float(middle), float(low), float(high), len(above), sum(map(len, above)))


@dataclass(frozen=True)
class Hindsight:
    """The best of several modes for each round that can be scored, chosen without that round; `held_out` is False where
    a single round had to serve for both."""

    by_round: Mapping[int, str]
    held_out: bool

    @property
    def modes(self) -> tuple[str, ...]:
        """Those that were chosen."""
        return tuple(sorted(set(self.by_round.values())))


def best_in_hindsight(values: Mapping[str, Mapping[int, Sequence[float]]]) -> Hindsight:
    """The mode with the lowest mean of *values* (mode, then round from 1, then requests): chosen on odd rounds for even
    ones and the other way round, because the best of several noisy means is too good to be true where it was chosen."""
    rounds = sorted(set.intersection(*(set(by_round) for by_round in values.values())))
    if not rounds:
        raise ValueError("no round in which every mode was measured")
    halves = [[r for r in rounds if r % 2 == parity] for parity in (0, 1)]
    held_out = all(halves)
    chosen = [_best(values, half if held_out else rounds) for half in reversed(halves)]
    return Hindsight({r: chosen[r % 2] for r in rounds}, held_out)


def _best(values: Mapping[str, Mapping[int, Sequence[float]]], rounds: Sequence[int]) -> str:
    def mean(mode: str) -> float:
        return float(np.mean(np.concatenate([np.asarray(values[mode][r], dtype=float) for r in rounds])))

    return min(values, key=mean)
