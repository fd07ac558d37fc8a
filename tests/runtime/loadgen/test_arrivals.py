"""Arrivals are the same for every mode, and turns share out the drift of the machine."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartspec.loadgen.arrivals import Phase, poisson, turns

PHASES = st.lists(st.builds(Phase, st.floats(0.5, 20.0), st.floats(1.0, 10.0)), min_size=1, max_size=4)


@given(PHASES, st.integers(0, 1000))
def test_exactly_as_many_as_promised(phases: list[Phase], seed: int) -> None:
    """Each phase has its rate's number of requests, in order, from 0, whatever the seed; one seed is one schedule."""
    times = poisson(phases, seed)
    assert len(times) == sum(round(phase.rate * phase.seconds) for phase in phases)
    assert times == sorted(times)
    assert not times or times[0] == 0.0
    assert times == poisson(phases, seed)


def test_gaps_are_memoryless() -> None:
    """Gaps have the mean that the rate promises, and a deviation as large as their mean, as a Poisson process's do."""
    gaps = np.concatenate([np.diff(poisson([Phase(2.0, 200.0)], seed)) for seed in range(5)])
    assert abs(gaps.mean() / 0.5 - 1) < 0.1
    assert abs(gaps.std() / gaps.mean() - 1) < 0.15


def test_a_flood_lies_between() -> None:
    """The requests of a faster phase come within its time."""
    times = poisson([Phase(1, 5), Phase(16, 2), Phase(1, 5)], seed=3)
    flood = times[5:37]
    assert flood[-1] - flood[0] < 2.0
    assert times[37] - times[0] > 2.0


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8, unique=True))
def test_there_and_back(modes: list[str]) -> None:
    """Over two rounds every mode's places sum to the same: a linear drift weighs on all alike."""
    for turn in range(0, 2 * len(modes), 2):
        one, two = turns(modes, turn), turns(modes, turn + 1)
        assert sorted(one) == sorted(modes)
        assert {one.index(mode) + two.index(mode) for mode in modes} == {len(modes) - 1}


def test_everyone_begins_once() -> None:
    """Over as many pairs of rounds as there are modes, each is the first of a pair once."""
    modes = ["a", "b", "c"]
    assert [turns(modes, turn)[0] for turn in (0, 2, 4)] == modes
