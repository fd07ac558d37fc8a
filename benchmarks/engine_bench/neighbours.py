"""How much of our cores other processes took: threads that wait for each other by spinning lose far more than that."""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

NOTABLE = 0.05
"""Cores that others may take before it is said."""


def busy_seconds(text: str, cores: Collection[int], ticks: int) -> float:
    """Seconds in which *cores* did anything, or were taken by the host, by */proc/stat*'s *text*."""
    found = 0
    for line in text.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, interrupts, soft, steal = map(int, fields[:8])
            found += user + nice + system + interrupts + soft + steal
    return found / ticks


class Neighbours:
    """Watches the cores that this process may use, from its making on."""

    def __init__(self, stat: Path = Path("/proc/stat"), clock: Callable[[], float] = time.monotonic) -> None:
        self._stat, self._clock = stat, clock
        self._cores = os.sched_getaffinity(0)
        self._began, self._others = clock(), self._now()

    def _now(self) -> float:
        own = os.times()
        ours = own.user + own.system + own.children_user + own.children_system
        return busy_seconds(self._stat.read_text(), self._cores, os.sysconf("SC_CLK_TCK")) - ours

    def cores(self) -> float:
        """Cores' worth of time that others took of ours on average until now."""
        return max(0.0, self._now() - self._others) / max(self._clock() - self._began, 1e-9)
