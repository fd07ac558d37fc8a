"""How long a child is left to others who change it back again and again: longer each time, or both write forever."""

from dataclasses import dataclass

FIRST_SECONDS = 2.0
LONGEST_SECONDS = 240.0
CALM_SECONDS = 600.0
"""A child that nobody has touched for so long is repaired at once again."""
CONTESTED_TIMES = 3
"""From so many repairs of the same on, it is somebody's business, and a Warning."""
AT_ONCE = frozenset({"spec.replicas"})
"""What is never left to others: the number of replicas is a decision, and a wrong one costs requests."""


@dataclass(frozen=True)
class Contest:
    """That others changed the same `paths` of a child, repaired `times` in a row, and until when they are let be.

    `repaired` and `until` are on a monotonic clock, in seconds. `left` is the digest of the object as it is let be.
    """

    paths: frozenset[str]
    times: int
    repaired: float
    until: float
    left: bytes = b""

    @property
    def wait_seconds(self) -> float:
        """How long they are let be."""
        return self.until - self.repaired

    def covers(self, paths: frozenset[str]) -> bool:
        """Whether a change of *paths* is more of the same; what else changes is repaired at once."""
        return bool(paths) and paths <= self.paths - AT_ONCE


def contested(paths: frozenset[str], before: Contest | None, now: float) -> Contest:
    """One more repair of *paths* after the one *before*; the first one where it is another's, or long ago."""
    again = before is not None and bool(paths & before.paths) and now - before.until < CALM_SECONDS
    times = before.times + 1 if again and before is not None else 1
    return Contest(paths, times, now, now + min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(times - 1, 16)))
