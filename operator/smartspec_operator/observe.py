"""The world as one frozen Observation: children, pods, and what each replica says of itself."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from smartspec_operator import integrate
from smartspec_operator.cluster import Cluster, controller_of
from smartspec_operator.recollect import in_force, scaled
from smartspec_operator.replicas import Replicas
from smartspec_operator.resource import (
    ADMIN_KEY_VARIABLE,
    ADMIN_PORT_NAME,
    ANNOTATION_ADMIN_KEY,
    ANNOTATION_MODEL,
    ANNOTATION_RECOMMENDATIONS,
    Manifest,
    SmartSpec,
)
from smartspec_operator.troubles import deployment_problem, in_terms_of, pod_problem
from smartspec_operator.world import (
    Failure,
    History,
    Observation,
    Pod,
    Problem,
    Recommendation,
    Replica,
    decode,
    moment,
)

STUCK_SECONDS = 120.0
"""A pod that has a node and no address for so long waits for something that only its claim or its Events tell."""
SHARED = frozenset({"ReadWriteMany", "ReadOnlyMany"})
ENDED = frozenset({"Failed", "Succeeded"})
"""Phases that no pod leaves: it was evicted, refused by its node, or went with it. Its ReplicaSet makes another at once
and leaves this one lying, and its address may be another pod's by now: no replica, and nobody to ask."""
LATELY_SECONDS = 600.0
"""How long a pod that has ended explains why there are too few: one of last week does not explain today's."""


async def observe(owner: SmartSpec, cluster: Cluster, replicas: Replicas, now: datetime) -> Observation:
    """Read everything once, concurrently; a replica that does not answer becomes a `Failure`."""
    deployment, service, config_map, secret, pods, (known, integrations, problems) = await asyncio.gather(
        cluster.get("Deployment", owner.namespace, owner.name),
        cluster.get("Service", owner.namespace, owner.name),
        cluster.get("ConfigMap", owner.namespace, owner.policy_config_map),
        cluster.get("Secret", owner.namespace, owner.admin_key.name),
        cluster.list("Pod", owner.namespace, owner.labels),
        integrate.found(owner, cluster),
    )
    deployed = None if deployment is None else deployment["spec"].get("replicas", 1)
    settings, tuning = in_force(owner, config_map, now)
    decided, records = scaled(owner, deployment)
    live = [_told(owner, read_pod(manifest), now) for manifest in pods if not _has_ended(manifest)]
    trouble = deployment_problem(deployment)
    if trouble is None and sum(not pod.terminating for pod in live) < (deployed or 0):
        trouble = _loss([read_pod(manifest) for manifest in pods if _has_ended(manifest)], now)
    live = await _without_api_key(owner, live, cluster)
    seen = await asyncio.gather(*(_ask(owner, pod, replicas) for pod in live))
    return Observation(
        replicas=tuple(sorted(seen, key=lambda replica: replica.pod.name)),
        service=service,
        deployed_replicas=deployed,
        rolling=deployment is not None and _is_rolling(deployment),
        makes_room=any(_makes_room(manifest, now) for manifest in pods),
        problem=None if trouble is None else in_terms_of(owner, trouble),
        shared_cache=not any(_is_stuck(pod, now) for pod in live) or await _is_cache_shared(owner, cluster),
        admin_key_version=_version(owner, secret),
        is_key_lost=_is_ours(owner, secret) and _version(owner, secret) is None,
        deployed_key_version=_deployed_key_version(owner, deployment),
        integrations=integrations,
        known_kinds=known,
        integration_problems=problems,
        model_source=_annotation(deployment, ANNOTATION_MODEL),
        history=History(
            settings=settings,
            tuning=tuning,
            recommendations=decode(_annotation(deployment, ANNOTATION_RECOMMENDATIONS), tuple[Recommendation, ...], ()),
            replicas=decided,
            scaling=records,
        ),
    )


async def admin_key_version(owner: SmartSpec, cluster: Cluster) -> str | None:
    """What names the Secret of the admin key as it is; None while there is no key."""
    return _version(owner, await cluster.get("Secret", owner.namespace, owner.admin_key.name))


async def _ask(owner: SmartSpec, pod: Pod, replicas: Replicas) -> Replica:
    if pod.admin_url is None or pod.terminating:
        return Replica(pod)
    answer = await replicas.load(owner, pod)
    return Replica(pod, failure=answer) if isinstance(answer, Failure) else Replica(pod, load=answer)


def _told(owner: SmartSpec, pod: Pod, now: datetime) -> Pod:
    """*pod* with its problem in terms of *owner*, and a problem where it only waits, and for too long."""
    if pod.problem is not None:
        return replace(pod, problem=in_terms_of(owner, pod.problem))
    if _is_stuck(pod, now):
        text = f"on node {pod.node}, without an address: a volume or the network is missing, kubectl describe tells"
        return replace(pod, problem=Problem("Stuck", text))
    return pod


def _has_ended(manifest: Manifest) -> bool:
    return manifest.get("status", {}).get("phase") in ENDED


def _loss(ended: Sequence[Pod], now: datetime) -> Problem | None:
    """What became of the newest of those that have ended, where it tells and is no old story."""
    horizon = now - timedelta(seconds=LATELY_SECONDS)
    newest = max((pod for pod in ended if pod.problem and pod.since > horizon), key=lambda p: p.since, default=None)
    if newest is None or newest.problem is None:
        return None
    return Problem(newest.problem.reason, f"{newest.name}: {newest.problem.message}".removesuffix(": "))


async def _without_api_key(owner: SmartSpec, pods: list[Pod], cluster: Cluster) -> list[Pod]:
    """*pods*, where those that only wait have a problem if the file with the keys of clients cannot be mounted.

    Kubelet says so in Events, which the operator has no right to read, and in no status. So the Secret itself is looked
    for, as long as a pod waits; where there is no right for that either, such a pod is `Stuck` in the end.
    """
    key = owner.spec.server.api_key_secret_ref
    waiting = [pod for pod in pods if pod.admin_url is None and not pod.terminating and _only_waits(pod.problem)]
    if key is None or not waiting or await cluster.has_key(owner.namespace, key.name, key.key) is not False:
        return pods
    text = f"spec.server.apiKeySecretRef: there is no Secret {key.name} with the key {key.key}"
    return [replace(pod, problem=Problem("SecretMissing", text)) if pod in waiting else pod for pod in pods]


def _only_waits(problem: Problem | None) -> bool:
    return problem is None or problem.reason == "Stuck"


def _is_stuck(pod: Pod, now: datetime) -> bool:
    waits = pod.node is not None and pod.admin_url is None and not pod.terminating
    return waits and now - pod.since > timedelta(seconds=STUCK_SECONDS)


async def _is_cache_shared(owner: SmartSpec, cluster: Cluster) -> bool:
    """Whether pods on several nodes can have the cache; True where there is no claim to look at."""
    name = owner.cache_claim
    claim = None if name is None else await cluster.get("PersistentVolumeClaim", owner.namespace, name)
    return claim is None or bool(SHARED & set(claim["spec"].get("accessModes", ())))


def read_pod(manifest: Manifest) -> Pod:
    """A pod's manifest as the decisions see it."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    ready: Mapping[str, Any] = next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), {})
    moments = [metadata.get("creationTimestamp"), ready.get("lastTransitionTime")]
    return Pod(
        name=metadata["name"],
        since=max((moment(text) for text in moments if text), default=datetime.fromtimestamp(0, UTC)),
        ready=ready.get("status") == "True",
        terminating="deletionTimestamp" in metadata,
        admin_url=_admin_url(manifest),
        problem=pod_problem(status),
        node=manifest["spec"].get("nodeName"),
        admin_key_version=_annotation(manifest, ANNOTATION_ADMIN_KEY),
    )


def _admin_url(manifest: Manifest) -> str | None:
    host = manifest.get("status", {}).get("podIP")
    for container in manifest["spec"]["containers"]:
        for port in container.get("ports", ()):
            if host and port.get("name") == ADMIN_PORT_NAME:
                return f"http://{f'[{host}]' if ':' in host else host}:{port['containerPort']}"
    return None


def _is_rolling(deployment: Manifest) -> bool:
    """Whether pods of an older template still run, or the controller has not looked at the newest one yet."""
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return True
    return bool(status.get("replicas", 0) > status.get("updatedReplicas", 0))


def _makes_room(manifest: Manifest, now: datetime) -> bool:
    """Whether a pod that ends has a place on a node yet. One of a lost node never goes: it has a deadline."""
    by_when = manifest["metadata"].get("deletionTimestamp")
    return by_when is not None and "nodeName" in manifest["spec"] and not _has_ended(manifest) and now < moment(by_when)


def _is_ours(owner: SmartSpec, secret: Manifest | None) -> bool:
    """Whether it is the Secret that the operator generated for *owner*."""
    is_generated = owner.spec.server.admin_key_secret_ref is None
    return is_generated and secret is not None and controller_of(secret) == owner.uid


def _version(owner: SmartSpec, secret: Manifest | None) -> str | None:
    """A text that changes with the admin key's Secret, from its identity alone: nothing of it leaks into annotations.

    A digest of the key itself would: whoever may read pods could try out keys against it, without asking any replica.
    """
    is_meant = _is_ours(owner, secret) or owner.spec.server.admin_key_secret_ref is not None
    if secret is None or not is_meant or owner.admin_key.key not in secret.get("data", {}):
        return None
    identity = f"{secret['metadata'].get('uid', '')}/{secret['metadata'].get('resourceVersion', '')}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _deployed_key_version(owner: SmartSpec, deployment: Manifest | None) -> str | None:
    """The version of the admin key that pods are made for; None where they take it from another Secret."""
    template = {} if deployment is None else deployment["spec"].get("template", {})
    key = {"name": owner.admin_key.name, "key": owner.admin_key.key}
    sources = [
        variable.get("valueFrom", {}).get("secretKeyRef")
        for container in template.get("spec", {}).get("containers", ())
        for variable in container.get("env", ())
        if variable["name"] == ADMIN_KEY_VARIABLE
    ]
    return _annotation({"metadata": {}, **template}, ANNOTATION_ADMIN_KEY) if key in sources else None


def _annotation(manifest: Manifest | None, name: str) -> str | None:
    return None if manifest is None else (manifest["metadata"].get("annotations") or {}).get(name)
