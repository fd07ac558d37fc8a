"""Which replicas leave, and when the Deployment may follow: drained first, so that scaling down aborts no request."""

from datetime import datetime, timedelta

from smartspec_operator.world import Observation, Replica


def victims(seen: Observation, wanted: int) -> tuple[Replica, ...]:
    """Those that drain already, and the least busy of the others where the Deployment is larger than *wanted*.

    Pods that are not ready go first anyway. While pods are replaced there are more of them than wanted for a moment:
    that is the Deployment's own doing, and it takes the right ones away.
    """
    shrinks = seen.deployed_replicas is not None and wanted < seen.deployed_replicas and not seen.rolling
    surplus = max(0, len(seen.serving) - wanted) if shrinks else 0
    return (*seen.draining, *sorted(seen.serving, key=_busyness)[:surplus])


def held(
    seen: Observation, wanted: int, *, since: datetime | None, now: datetime, patience: timedelta
) -> tuple[Replica, ...]:
    """The victims that stay for now, on the way to *wanted*, decided at *since*.

    While one is ready, the ReplicaSet controller would take another. And while it works, ending it would begin the
    pod's grace period, which cuts an answer that is longer. Neither for longer than *patience*.
    """
    overdue = since is not None and now - since > patience

    def stays(victim: Replica) -> bool:
        if victim.pod.ready:
            return not overdue
        return is_busy(victim) and now - victim.pod.since <= patience

    return tuple(victim for victim in victims(seen, wanted) if stays(victim))


def replicas_now(seen: Observation, wanted: int, stay: tuple[Replica, ...]) -> int:
    """What to tell the Deployment on the way to *wanted*, while the victims *stay*: it falls as each has drained."""
    deployed = seen.deployed_replicas
    if deployed is None:
        return wanted
    if wanted < deployed:
        return min(deployed, wanted + len(stay))
    drained = sum(not replica.pod.ready and replica not in stay for replica in seen.draining)
    if drained:
        # Wanted again while it drained. A drained replica takes no request any more: first it goes, then another comes.
        # Once the Deployment was lowered its pods are more than it asks for, until the controller has caught up.
        live = sum(not replica.pod.terminating for replica in seen.replicas)
        return deployed - drained if live == deployed else deployed
    return wanted


def is_busy(replica: Replica) -> bool:
    """Whether it says that it has requests."""
    return replica.load is not None and replica.load.num_requests_running + replica.load.num_requests_waiting > 0


def _busyness(replica: Replica) -> tuple[int, int, str]:
    if replica.load is None:  # nothing is known of its requests: not a good victim
        return (1, 0, replica.pod.name)
    return (0, replica.load.num_requests_running + replica.load.num_requests_waiting, replica.pod.name)
