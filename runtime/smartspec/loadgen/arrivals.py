"""When requests arrive: fixed before a run from a seed, so that every mode meets the same ones."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A stretch of *seconds* in which *rate* requests arrive per second."""

    rate: float
    seconds: float


def poisson(phases: Sequence[Phase], seed: int) -> list[float]:
    """Arrival times in seconds, rising, of a Poisson process through *phases*; each phase has exactly the number of
    requests its rate promises (given their number, a Poisson process's arrivals are uniform), so that runs of one
    length are equal work whatever the seed."""
    rng = random.Random(seed)
    times: list[float] = []
    start = 0.0
    for phase in phases:
        count = round(phase.rate * phase.seconds)
        times += sorted(start + rng.random() * phase.seconds for _ in range(count))
        start += phase.seconds
    # The first request starts the clock: waiting for it is no one's load.
    return [time - times[0] for time in times] if times else []


def turns(modes: Sequence[str], turn: int) -> list[str]:
    """The order of *modes* in round *turn* (from 0): there, and back, and each pair of rounds begins elsewhere.

    A drift of the machine that is linear over two rounds (A B B A) then weighs on all modes alike.
    """
    start = (turn // 2) % len(modes)
    order = [*modes[start:], *modes[:start]]
    return order if turn % 2 == 0 else order[::-1]
