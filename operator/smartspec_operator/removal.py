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


def replicas_now(
    seen: Observation, wanted: int, *, since: datetime | None, now: datetime, timeout_seconds: float
) -> int:
    """What to tell the Deployment on the way to *wanted*, decided at *since*.

    The ReplicaSet controller removes unready pods first, so the number falls as victims become unready; after the
    timeout it falls regardless, and the pod's own grace period takes over.
    """
    deployed = seen.deployed_replicas
    if deployed is None:
        return wanted
    if wanted < deployed:
        if since is not None and now - since > timedelta(seconds=timeout_seconds):
            return wanted
        return min(deployed, wanted + sum(victim.pod.ready for victim in victims(seen, wanted)))
    drained = sum(not replica.pod.ready for replica in seen.draining)
    if drained:
        # Wanted again while it drained. A drained replica takes no request any more: first it goes, then another comes.
        # Once the Deployment was lowered its pods are more than it asks for, until the controller has caught up.
        live = sum(not replica.pod.terminating for replica in seen.replicas)
        return deployed - drained if live == deployed else deployed
    return wanted


def _busyness(replica: Replica) -> tuple[int, int, str]:
    if replica.load is None:  # nothing is known of its requests: not a good victim
        return (1, 0, replica.pod.name)
    return (0, replica.load.num_requests_running + replica.load.num_requests_waiting, replica.pod.name)
