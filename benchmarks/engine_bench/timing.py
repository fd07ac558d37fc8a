"""Times that can be compared: taken in turns, with intervals, by part, and with a clock that can be stopped."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from smartspec.loadgen.estimates import RESAMPLES, Ratio


@dataclass(frozen=True)
class Contender:
    """Something to be timed; *prepare* is run before it each time, off the clock."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


def alternate(
    contenders: Mapping[str, Contender],
    *,
    seconds: float,
    least: int = 6,
    most: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contender, one value a turn, in turns that go A B B A, so that whatever else the machine does
    weighs on all alike. As many turns as fit into *seconds*, from *least* to *most*, after two that do not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    deadline = None
    for turn in range(-2, most):
        if turn == 0:
            deadline = clock() + seconds
        # An even number: each order as often as the other.
        if turn >= least and turn % 2 == 0 and deadline is not None and clock() >= deadline:
            break
        for name in order if turn % 2 == 0 else reversed(order):
            contender = contenders[name]
            if contender.prepare is not None:
                contender.prepare()
            began = clock()
            contender.run()
            took = clock() - began
            if turn >= 0:
                times[name].append(took)
    return times


def median_ratio(above: Sequence[float], below: Sequence[float], *, paired: bool = False, seed: int = 0) -> Ratio:
    """Median of *above* over median of *below*, taken in the same turns, with a bootstrap interval over turns.

    *paired*: the median of the turns' ratios instead, for which a slow drift of the machine is nothing. Raises
    ValueError when there are no turns, or not as many on both sides.
    """
    if not len(above) or len(above) != len(below):
        raise ValueError(f"need as many values on both sides, at least one: got {len(above)} and {len(below)}")
    one, two = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    picks = np.random.default_rng(seed).integers(len(one), size=(RESAMPLES, len(one)))
    if paired:
        ratios = one / two
        middle, drawn = np.median(ratios), np.median(ratios[picks], axis=1)
    else:
        middle, drawn = np.median(one) / np.median(two), np.median(one[picks], axis=1) / np.median(two[picks], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Ratio(float(middle), float(low), float(high), 1, len(one))


def deviation(repeats: Sequence[Sequence[float]]) -> float:
    """How far a single one of identical repeated steps lies from what it should be: the median, over all steps, of its
    relative distance from the middle of its kind. The middle is of the same few steps and so too near them, by
    (n - 1) / n, which is put right."""
    distances: list[float] = []
    for times in repeats:
        if len(times) > 1:
            values = np.asarray(times, dtype=float)
            middle = np.median(values)
            distances += (np.abs(values / middle - 1.0) * len(values) / (len(values) - 1)).tolist()
    if not distances:
        raise ValueError("nothing was repeated")
    return float(np.median(distances))


class PausableClock:
    """A clock for an engine that is interrupted for measurements which are none of its business."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._paused = 0.0

    def __call__(self) -> float:
        """Seconds, without the pauses."""
        return self._clock() - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside takes no time."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began


class Stopwatch:
    """Time by part, from outside: functions are wrapped, and what one of them takes is its own, without what wrapped
    functions take that it calls. So parts add up to the whole."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._open: list[list[Any]] = []
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, function: Callable[..., Any], part: str, within: Mapping[str, str] | None = None) -> Any:
        """*function*, timed as *part*; called from a part of *within*, as what stands there."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            name = part
            if within and self._open:
                name = within.get(self._open[-1][0], part)
            self._open.append([name, 0.0])
            began = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = self._clock() - began
                _, inner = self._open.pop()
                self.seconds[name] += took - inner
                if self._open:
                    self._open[-1][1] += took

        return timed

    @contextmanager
    def on(self, *wrapped: tuple[Any, str, str] | tuple[Any, str, str, Mapping[str, str]]) -> Iterator["Stopwatch"]:
        """Time (owner, name of its function, part[, within]) for a while."""
        with ExitStack() as stack:
            for owner, name, part, *within in wrapped:
                timed = self.wrap(getattr(owner, name), part, within[0] if within else None)
                stack.enter_context(mock.patch.object(owner, name, timed))
            yield self

    def take(self) -> dict[str, float]:
        """Seconds by part since the last time, which are forgotten."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken
