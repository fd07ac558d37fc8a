"""The story: observe, decide, render, apply, report. Level, not edge: every trigger calls the same function."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import msgspec

from smartspec_operator import integrate, render, scaling, status, tuning
from smartspec_operator.cluster import Cluster
from smartspec_operator.observe import admin_key_version, observe
from smartspec_operator.replicas import Replicas
from smartspec_operator.reported import Status
from smartspec_operator.resource import INTEGRATIONS, InvalidSpecError, Manifest, SmartSpec
from smartspec_operator.rules import violations
from smartspec_operator.world import Due, Failure, Observation, PolicyDecision, ScalingDecision, Timing


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
    seen = await observe(owner, cluster, replicas, now)
    if broken := violations(owner.name, owner.spec, seen.model_source):
        raise InvalidSpecError("; ".join(broken))
    policy = (tuning.decide if due.tuning else tuning.keep)(owner, seen, seen.history, now=now)
    scale = (scaling.decide if due.scaling else scaling.keep)(owner, seen, seen.history, policy, now=now, timing=timing)
    seen = await write(owner, seen, policy, scale, cluster, image=image, new_key=new_key)
    refusals, _ = await asyncio.gather(push(owner, seen, policy, replicas), drain(owner, seen, scale, replicas))
    return status.compute(owner, seen, policy, scale, refusals, now=now)


async def look(owner: SmartSpec, cluster: Cluster, replicas: Replicas, *, now: datetime) -> Status:
    """What is seen of *owner*, which is not carried out: nothing is decided or written, and its decisions stand."""
    seen = await observe(owner, cluster, replicas, now)
    if seen.deployed_replicas is None and owner.status.condition("Available") is None:
        return owner.status  # nothing was ever made of it
    settings = seen.history.settings
    policy = tuning.keep(owner, seen, seen.history, now=now)
    wanted = len(seen.replicas) if seen.deployed_replicas is None else seen.deployed_replicas
    scale = ScalingDecision(desired=wanted, replicas=wanted, history=seen.history.scaling)
    found = status.compute(owner, seen, policy, scale, now=now)
    return status.observed(
        owner.status, found if settings else msgspec.structs.replace(found, policy=owner.status.policy)
    )


async def write(
    owner: SmartSpec,
    seen: Observation,
    policy: PolicyDecision,
    scale: ScalingDecision,
    cluster: Cluster,
    *,
    image: str,
    new_key: Callable[[], str],
) -> Observation:
    """Make the children so: all of them, or, where one is refused or another's, none. The world as it is then.

    Each of the optional ones is made by itself: what is refused of these stands in the world.
    """
    children = render.children(owner, seen, policy, scale, image=image)
    for manifest in _needed(children):
        await cluster.check(manifest)
    if seen.admin_key_version is None and not seen.is_key_lost and owner.spec.server.admin_key_secret_ref is None:
        await cluster.create(render.admin_key_secret(owner, new_key()))
        seen = replace(seen, admin_key_version=await admin_key_version(owner, cluster))
        children = render.children(owner, seen, policy, scale, image=image)  # pods that start name the key's version
    for manifest in _needed(children):
        await cluster.apply(manifest)
    optional = [manifest for manifest in children if manifest["kind"] in INTEGRATIONS]
    problems = await integrate.make(optional, seen.integrations, cluster)
    return replace(seen, integration_problems={**seen.integration_problems, **problems})


def _needed(children: Sequence[Manifest]) -> list[Manifest]:
    return [manifest for manifest in children if manifest["kind"] not in INTEGRATIONS]


async def push(
    owner: SmartSpec, seen: Observation, policy: PolicyDecision, replicas: Replicas
) -> Mapping[str, Failure]:
    """Hand the policy to every replica that runs an older one; why those that did not take it did not, by pod.

    The next observation shows who took it. One that still loads reads the ConfigMap's, and has nothing yet to run it.
    Without the priors: those are for replicas that start. A running replica has its own evidence in them already.
    """
    settings = msgspec.structs.replace(policy.settings, priors=None)
    behind = [
        replica.pod
        for replica in seen.replicas
        if replica.load is not None and replica.load.state == "ready" and replica.load.generation < settings.generation
    ]
    answers = await asyncio.gather(*(replicas.push(owner, pod, settings) for pod in behind))
    return {pod.name: answer for pod, answer in zip(behind, answers, strict=True) if answer is not None}


async def drain(owner: SmartSpec, seen: Observation, scale: ScalingDecision, replicas: Replicas) -> None:
    """Ask every victim that does not drain yet to begin."""
    serving = [replica.pod for replica in seen.serving if replica.pod.name in scale.victims]
    await asyncio.gather(*(replicas.drain(owner, pod) for pod in serving))
