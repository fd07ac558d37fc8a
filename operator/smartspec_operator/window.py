"""Recommendations over time and what they allow: going up the lowest of a window, going down the highest, as the HPA.

The past is kept as a step function, one entry for each change, so that a recommendation that stays costs no writes.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from smartspec_operator.world import Recommendation


def extended(
    past: Sequence[Recommendation], replicas: int, *, current: int, now: datetime, longest_seconds: float
) -> tuple[Recommendation, ...]:
    """*past* with what is recommended now; an empty past begins with *current*, so that every window starts full."""
    known = tuple(past) or (Recommendation(now, current),)
    if known[-1].replicas == replicas:
        return known
    horizon = now - timedelta(seconds=longest_seconds)
    ends = [after.since for after in known[1:]] + [now]
    return (*(entry for entry, end in zip(known, ends, strict=True) if end > horizon), Recommendation(now, replicas))


def stabilised(
    past: Sequence[Recommendation], *, current: int, now: datetime, up_seconds: float, down_seconds: float
) -> int:
    """How many replicas the windows allow: more only when all of the up window says more, fewer likewise."""
    lowest = min(_within(past, now, up_seconds))
    highest = max(_within(past, now, down_seconds))
    if lowest > current:
        return lowest
    return min(highest, current)


def _within(past: Sequence[Recommendation], now: datetime, seconds: float) -> list[int]:
    """The recommendations that stood at some time of the window; always the last one."""
    horizon = now - timedelta(seconds=seconds)
    ends = [after.since for after in past[1:]]
    standing = [entry.replicas for entry, end in zip(past, ends, strict=False) if end > horizon]
    return [*standing, past[-1].replicas]
