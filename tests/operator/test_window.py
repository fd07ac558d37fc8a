"""Recommendations over time: what the windows allow, and that the past is kept as cheaply as it changes."""

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from fleets import NOW, later
from smartspec_operator.window import extended, stabilised
from smartspec_operator.world import Recommendation

samples = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), min_size=1, max_size=30)
windows = st.integers(0, 120)


def played(steps: list[tuple[int, int]], current: int, longest: int) -> tuple[tuple[Recommendation, ...], datetime]:
    """The past after recommendations at so many seconds from each other, and the moment of the last one."""
    past, seconds = extended((), current, current=current, now=NOW, longest_seconds=longest), 0
    for gap, replicas in steps:
        seconds += gap
        past = extended(past, replicas, current=current, now=later(seconds), longest_seconds=longest)
    return past, later(seconds)


def standing(steps: list[tuple[int, int]], current: int, seconds: int) -> set[int]:
    """Every recommendation that stood at some time of the window, the slow and obvious way, second by second."""
    timeline, last = [current], current
    for gap, replicas in steps:
        timeline += [last] * (gap - 1) + [replicas]
        last = replicas
    return set(timeline[-(seconds + 1) :])


@given(samples, st.integers(1, 8), windows, windows)
def test_up_takes_the_lowest_of_its_window_and_down_the_highest(
    steps: list[tuple[int, int]], current: int, up: int, down: int
) -> None:
    """More replicas need all of the up window to say more, fewer need all of the down window to say less."""
    past, now = played(steps, current, max(up, down))
    lowest, highest = min(standing(steps, current, up)), max(standing(steps, current, down))
    expected = lowest if lowest > current else min(highest, current)
    assert stabilised(past, current=current, now=now, up_seconds=up, down_seconds=down) == expected


@given(samples, st.integers(1, 8), windows, windows)
def test_a_window_never_overshoots_what_was_recommended(
    steps: list[tuple[int, int]], current: int, up: int, down: int
) -> None:
    """The answer stays between the current number and the last recommendation."""
    past, now = played(steps, current, max(up, down))
    answer = stabilised(past, current=current, now=now, up_seconds=up, down_seconds=down)
    last = steps[-1][1]
    assert min(current, last) <= answer <= max(current, last)


def test_an_unchanged_recommendation_writes_nothing() -> None:
    """The past is the same object's value while the recommendation stays: rest means no writes."""
    past = extended((), 2, current=2, now=NOW, longest_seconds=300)
    assert extended(past, 2, current=2, now=later(10_000), longest_seconds=300) == past


def test_the_past_does_not_grow_beyond_the_window() -> None:
    """Entries that ended before the longest window are dropped."""
    past = extended((), 1, current=1, now=NOW, longest_seconds=60)
    for minute in range(100):
        past = extended(past, 1 + minute % 2, current=1, now=later(30.0 * minute), longest_seconds=60)
    assert len(past) <= 4


def test_a_fresh_past_delays_removal_by_a_full_window() -> None:
    """After a first start nothing is removed before the window has passed, though less is recommended at once."""
    past = extended((), 1, current=4, now=NOW, longest_seconds=300)
    assert stabilised(past, current=4, now=later(299), up_seconds=0, down_seconds=300) == 4
    assert stabilised(past, current=4, now=later(301), up_seconds=0, down_seconds=300) == 1
