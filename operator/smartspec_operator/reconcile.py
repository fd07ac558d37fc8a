"""The story: observe, decide, render, apply, report. Level, not edge: every trigger calls the same function."""

import asyncio
from collections.abc import Callable
from datetime import datetime

import msgspec

from smartspec_operator import render, scaling, status, tuning
from smartspec_operator.cluster import Cluster
from smartspec_operator.observe import observe
from smartspec_operator.replicas import Replicas
from smartspec_operator.reported import Status
from smartspec_operator.resource import InvalidSpecError, SmartSpec
from smartspec_operator.rules import violations
from smartspec_operator.world import Due, Observation, PolicyDecision, ScalingDecision, Timing


async def reconcile(
    owner: SmartSpec,
    cluster: Cluster,
    replicas: Replicas,
    *,
    now: datetime,
    image: str,
    new_key: Callable[[], str],
    timing: Timing,
    due: Due,
) -> Status:
    """Bring the cluster one step closer to *owner*'s spec, and say how far it still is.

    Raises `InvalidSpecError` before anything is changed, and `NotOursError` when a child's name is taken.
    """
    seen = await prepared(owner, cluster, replicas, new_key)
    policy = (tuning.decide if due.tuning else tuning.keep)(owner, seen, seen.history, now=now)
    scale = (scaling.decide if due.scaling else scaling.keep)(owner, seen, seen.history, policy, now=now, timing=timing)
    for manifest in render.children(owner, seen, policy, scale, image=image):
        await cluster.apply(manifest)
    await asyncio.gather(push(owner, seen, policy, replicas), drain(owner, seen, scale, replicas))
    return status.compute(owner, seen, policy, scale, now=now)


async def prepared(owner: SmartSpec, cluster: Cluster, replicas: Replicas, new_key: Callable[[], str]) -> Observation:
    """The world, once the spec is known to be sound and an admin key exists: pods that start name its version."""
    seen = await observe(owner, cluster, replicas)
    if broken := violations(owner.name, owner.spec, seen.model_source):
        raise InvalidSpecError("; ".join(broken))
    if seen.admin_key_version is None and owner.spec.server.admin_key_secret_ref is None:
        await cluster.apply(render.admin_key_secret(owner, new_key()))
        seen = await observe(owner, cluster, replicas)
    return seen


async def push(owner: SmartSpec, seen: Observation, policy: PolicyDecision, replicas: Replicas) -> None:
    """Hand the policy to every replica that runs an older one; the next observation shows who took it.

    Without the priors: those are for replicas that start, which read them from the ConfigMap. A running replica has its
    own evidence in them already.
    """
    settings = msgspec.structs.replace(policy.settings, priors=None)
    behind = [r.pod for r in seen.replicas if r.load is not None and r.load.generation < settings.generation]
    await asyncio.gather(*(replicas.push(owner, pod, settings) for pod in behind))


async def drain(owner: SmartSpec, seen: Observation, scale: ScalingDecision, replicas: Replicas) -> None:
    """Ask every victim that does not drain yet to begin."""
    serving = [replica.pod for replica in seen.serving if replica.pod.name in scale.victims]
    await asyncio.gather(*(replicas.drain(owner, pod) for pod in serving))
