"""What a Deployment's controller decides: which pods to start and which to end. Pure; the processes are elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod as the rollout sees it. *revision* names the template it was made from, *created* orders pods by age."""

    name: str
    revision: str
    ready: bool
    created: float
    deletion_cost: int = 0
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """So many pods to start from the current template, and the names of those to end."""

    start: int = 0
    end: tuple[str, ...] = ()


def bounds(strategy: Mapping[str, Any], replicas: int) -> tuple[int, int]:
    """`maxSurge` and `maxUnavailable` of a Deployment's *strategy* in pods, of which one at least may move.

    Percentages are of *replicas*: the first is rounded up, the second down (source: Kubernetes, `ResolveFenceposts`).
    """
    rolling = strategy.get("rollingUpdate", {})
    surge, away = rolling.get("maxSurge", 1), rolling.get("maxUnavailable", 0)
    surge = ceil(int(surge[:-1]) * replicas / 100) if isinstance(surge, str) else surge
    away = int(away[:-1]) * replicas // 100 if isinstance(away, str) else away
    return surge, away if surge or away else 1


def plan(
    pods: Sequence[PodState], *, replicas: int, revision: str, max_surge: int = 1, max_unavailable: int = 0
) -> Rollout:
    """The next move towards *replicas* pods of *revision*.

    As a Deployment moves: a new template starts at most *max_surge* pods more, and of the old pods that serve only
    *max_unavailable* end before a new one serves instead. Among equals it ends what a ReplicaSet would: pods that are
    not ready first, then the cheapest to delete, then the youngest (source: Kubernetes, `controller.ActivePods`).
    """
    living = [pod for pod in pods if not pod.terminating]
    fresh = [pod for pod in living if pod.revision == revision]
    stale = [pod for pod in living if pod.revision != revision]

    surplus = _expendable_first(fresh)[: max(0, len(fresh) - replicas)]
    kept = [pod for pod in fresh if pod not in surplus]
    # An old pod that does not serve is in nobody's way but the new one's: it goes at once, however many there are.
    ended = [pod for pod in stale if not pod.ready]
    serving = [pod for pod in stale if pod.ready]
    spare = len(serving) + sum(pod.ready for pod in kept) - (replicas - max_unavailable)
    ended += _expendable_first(serving)[: max(0, spare)]

    room = replicas + (max_surge if stale else 0) - len(kept) - (len(stale) - len(ended))
    start = max(0, min(replicas - len(kept), room))
    return Rollout(start, tuple(pod.name for pod in (*surplus, *ended)))


def _expendable_first(pods: Sequence[PodState]) -> list[PodState]:
    return sorted(pods, key=lambda pod: (pod.ready, pod.deletion_cost, -pod.created))
