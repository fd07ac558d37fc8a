"""Times of the engine benchmark are taken in turns, add up by part, and come with intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from engine_bench.neighbours import busy_seconds
from engine_bench.timing import Contender, PausableClock, Stopwatch, alternate, deviation, median_ratio


class Clock:
    """A time that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now

    def spend(self, seconds: float) -> None:
        """Move it on."""
        self.now += seconds


def test_turns_go_back_and_forth_and_the_first_do_not_count() -> None:
    """A B B A, with as many turns in each order, and two turns of rehearsal."""
    clock, order = Clock(), []

    def run(name: str, seconds: float) -> Contender:
        def go() -> None:
            order.append(name)
            clock.spend(seconds)

        return Contender(go)

    times = alternate({"a": run("a", 1.0), "b": run("b", 3.0)}, seconds=0.0, least=4, clock=clock)
    assert "".join(order[4:]) == "abbaabba"
    assert times == {"a": [1.0] * 4, "b": [3.0] * 4}
    assert len(order) == 2 * (2 + 4)


def test_preparing_takes_no_time() -> None:
    """What is done before a contender runs is not timed."""
    clock = Clock()
    contender = Contender(lambda: clock.spend(1.0), lambda: clock.spend(10.0))
    assert alternate({"a": contender}, seconds=0.0, least=2, clock=clock) == {"a": [1.0, 1.0]}


def test_turns_fill_the_time_given() -> None:
    """More turns than the least, until the time is over, and never more than the most."""
    clock = Clock()
    contender = {"a": Contender(lambda: clock.spend(1.0))}
    assert len(alternate(contender, seconds=9.0, least=2, clock=clock)["a"]) == 10
    assert len(alternate(contender, seconds=9.0, least=2, most=4, clock=clock)["a"]) == 4


def test_ratio_of_medians_is_not_moved_by_an_interruption() -> None:
    """One step that took a hundred times longer changes nothing."""
    ratio = median_ratio([2.0] * 9 + [200.0], [1.0] * 10)
    assert (ratio.middle, ratio.low, ratio.high, ratio.pairs) == (2.0, 2.0, 2.0, 10)


def test_paired_ratio_does_not_see_a_drift() -> None:
    """A machine that becomes ten times slower over the run still shows a difference of one per cent."""
    drift = np.linspace(1.0, 10.0, 40)
    noise = np.random.default_rng(0).normal(1.0, 0.001, 40)
    paired = median_ratio(1.01 * drift * noise, drift, paired=True)
    assert paired.low < 1.01 < paired.high
    assert paired.high - paired.low < 0.002
    unpaired = median_ratio(1.01 * drift * noise, drift)
    assert unpaired.high - unpaired.low > paired.high - paired.low


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [1.0, 2.0])])
def test_ratio_needs_pairs(above: list[float], below: list[float]) -> None:
    """No turns, or not the same on both sides, is an error that says so."""
    with pytest.raises(ValueError, match="as many values on both sides"):
        median_ratio(above, below)


def test_deviation_of_few_repeats_is_that_of_many() -> None:
    """Four repeats of each step lead to the same number as a thousand would, within a tenth."""
    times = np.random.default_rng(1).normal(1.0, 0.03, (4000, 4))
    scales = np.random.default_rng(2).uniform(1.0, 9.0, (4000, 1))
    assert deviation((times * scales).tolist()) == pytest.approx(0.6745 * 0.03, rel=0.1)


def test_deviation_needs_repeats() -> None:
    """A step that was done once says nothing of deviation."""
    with pytest.raises(ValueError, match="nothing was repeated"):
        deviation([[1.0], []])


def test_pause_takes_no_time() -> None:
    """What happens in a pause is not on the clock, what happens around it is."""
    real = Clock()
    clock = PausableClock(real)
    real.spend(1.0)
    with clock.paused():
        real.spend(5.0)
    real.spend(2.0)
    assert clock() == 3.0


def test_parts_add_up_to_the_whole() -> None:
    """A part's time is its own: without the parts it calls, whoever calls them, and also when one raises."""
    clock = Clock()

    class Engine:
        def step(self) -> None:
            """Calls the others."""
            clock.spend(1.0)
            self.forward()
            with pytest.raises(KeyError):
                self.fail()

        def forward(self) -> None:
            """Calls pack."""
            clock.spend(2.0)
            self.pack()

        def pack(self) -> None:
            """Calls nobody."""
            clock.spend(4.0)

        def fail(self) -> None:
            """Raises."""
            clock.spend(8.0)
            raise KeyError

    engine = Engine()
    watch = Stopwatch(clock)
    with watch.on(
        (engine, "step", "rest"),
        (engine, "forward", "forward"),
        (engine, "pack", "pack", {"forward": "pack of forward"}),
        (engine, "fail", "fail"),
    ):
        engine.step()
        engine.pack()
        assert watch.take() == {"rest": 1.0, "forward": 2.0, "pack of forward": 4.0, "fail": 8.0, "pack": 4.0}
    engine.step()
    assert watch.take() == {}


def test_busy_seconds_are_those_of_our_cores() -> None:
    """Idle time, waiting for disks and other cores do not count; what the host took does."""
    text = "cpu 9 9 9 9 9 9 9 9 0 0\ncpu1 100 20 30 5000 7000 4 6 40 0 0\ncpu10 1000 0 0 0 0 0 0 0 0 0\nintr 5\n"
    assert busy_seconds(text, {1}, ticks=100) == 2.0
    assert busy_seconds(text, {1, 10}, ticks=100) == 12.0
