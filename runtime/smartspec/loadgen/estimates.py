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
    """The best of several modes, chosen on odd rounds, and the rounds left to score it on; `held_out` is False where a
    single round had to serve for both."""

    mode: str
    scored: tuple[int, ...]
    held_out: bool


def best_in_hindsight(values: Mapping[str, Mapping[int, Sequence[float]]]) -> Hindsight:
    """The mode with the lowest mean of *values* (mode, then round from 1, then requests): chosen on odd rounds, to be
    scored on even ones, because the best of several noisy means is too good to be true."""
    rounds = sorted(set.intersection(*(set(by_round) for by_round in values.values())))
    if not rounds:
        raise ValueError("no round in which every mode was measured")
    odd, even = [r for r in rounds if r % 2], [r for r in rounds if r % 2 == 0]
    held_out = bool(odd and even)
    chosen_on = odd if held_out else rounds

    def mean(mode: str) -> float:
        return float(np.mean(np.concatenate([np.asarray(values[mode][r], dtype=float) for r in chosen_on])))

    return Hindsight(min(values, key=mean), tuple(even if held_out else rounds), held_out)
