"""What a Deployment's controller decides: which pods to start and which to end. Pure; the processes are elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SURGE = 1


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


def plan(pods: Sequence[PodState], *, replicas: int, revision: str) -> Rollout:
    """The next move towards *replicas* pods of *revision*.

    As a Deployment with `maxSurge: 1, maxUnavailable: 0` moves: a new template starts one pod more, and an old pod
    that serves ends only when a new one serves instead. Among equals it ends what a ReplicaSet would: pods that are
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
    spare = len(serving) + sum(pod.ready for pod in kept) - replicas
    ended += _expendable_first(serving)[: max(0, spare)]

    room = replicas + (MAX_SURGE if stale else 0) - len(kept) - (len(stale) - len(ended))
    start = max(0, min(replicas - len(kept), room))
    return Rollout(start, tuple(pod.name for pod in (*surplus, *ended)))


def _expendable_first(pods: Sequence[PodState]) -> list[PodState]:
    return sorted(pods, key=lambda pod: (pod.ready, pod.deletion_cost, -pod.created))
