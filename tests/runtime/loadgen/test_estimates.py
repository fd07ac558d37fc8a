"""Ratios have intervals that mean what they say, and the best of several modes is not scored on what chose it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartspec.loadgen.estimates import best_in_hindsight, ratio


def _rounds(rng: np.random.Generator, *, factor: float, rounds: int = 6, pairs: int = 12) -> tuple[list, list]:
    """Two modes of which the first takes *factor* as long, on requests that differ much and rounds that differ some."""
    size = rng.lognormal(0.0, 0.8, (rounds, pairs)) * rng.lognormal(0.0, 0.1, (rounds, 1))
    noise = rng.lognormal(0.0, 0.05, (2, rounds, pairs))
    return (factor * size * noise[0]).tolist(), (size * noise[1]).tolist()


def test_covers() -> None:
    """The 95 % interval holds the true ratio in about that share of experiments."""
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(60):
        estimate = ratio(*_rounds(rng, factor=0.8), seed=seed)
        covered += estimate.low <= 0.8 <= estimate.high
    assert covered >= 50


def test_pairs_take_out_what_modes_share() -> None:
    """Requests that differ by much more than the modes do not widen the interval: it is the pairs that are drawn."""
    rng = np.random.default_rng(1)
    one, two = _rounds(rng, factor=0.97)
    shuffled = [list(rng.permutation(values)) for values in two]
    paired, unpaired = ratio(one, two), ratio(one, shuffled)
    assert paired.high - paired.low < 0.4 * (unpaired.high - unpaired.low)
    assert paired.high < 1.0


@given(st.lists(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=5), min_size=1, max_size=4), st.floats(0.1, 10.0))
def test_exact_where_modes_are_proportional(values: list[list[float]], factor: float) -> None:
    """Modes that differ by one factor everywhere give that factor, and no interval."""
    estimate = ratio([[factor * value for value in row] for row in values], values)
    assert (estimate.low, estimate.middle, estimate.high) == pytest.approx((factor, factor, factor))


def test_between_rounds_counts() -> None:
    """Faster in one round and slower in the next makes a wide interval, however many requests there are."""
    one, two = [[0.5] * 200, [1.5] * 200], [[1.0] * 200, [1.0] * 200]
    estimate = ratio(one, two)
    assert (estimate.low, estimate.high) == (0.5, 1.5)


def test_other_shapes_are_refused() -> None:
    """Values that do not pair cannot be compared."""
    with pytest.raises(ValueError, match="same number of requests"):
        ratio([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="no pairs"):
        ratio([], [])


def test_each_half_of_the_rounds_is_scored_by_the_choice_of_the_other() -> None:
    """The mode that is best on odd rounds is scored on even ones, even where another is best there, and vice versa."""
    values = {
        "fixed 1": {1: [1.0], 2: [9.0], 3: [1.0], 4: [9.0]},
        "fixed 3": {1: [2.0], 2: [1.0], 3: [2.0], 4: [1.0]},
    }
    best = best_in_hindsight(values)
    assert best.by_round == {1: "fixed 3", 2: "fixed 1", 3: "fixed 3", 4: "fixed 1"}
    assert (best.modes, best.held_out) == (("fixed 1", "fixed 3"), True)


def test_one_round_says_so() -> None:
    """With a single round nothing is held out, and the answer admits it; a round that a mode lacks does not count."""
    best = best_in_hindsight({"fixed 1": {1: [3.0]}, "fixed 3": {1: [2.0], 2: [2.0]}})
    assert (best.by_round, best.held_out) == ({1: "fixed 3"}, False)
