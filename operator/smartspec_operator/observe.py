"""The world as one frozen Observation: children, pods, and what each replica says of itself."""

import asyncio
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from smartspec.policy.settings import PolicySettings, decode_settings
from smartspec_operator.cluster import Cluster
from smartspec_operator.replicas import Replicas
from smartspec_operator.resource import (
    ADMIN_PORT_NAME,
    ANNOTATION_MODEL,
    ANNOTATION_RECOMMENDATIONS,
    ANNOTATION_TUNING,
    POLICY_FILE,
    Manifest,
    SmartSpec,
)
from smartspec_operator.world import (
    Failure,
    History,
    Observation,
    Pod,
    Problem,
    Recommendation,
    Replica,
    TuningState,
    decode,
    moment,
)

WAITING_IN_ORDER = frozenset({"ContainerCreating", "PodInitializing"})


async def observe(owner: SmartSpec, cluster: Cluster, replicas: Replicas) -> Observation:
    """Read everything once, concurrently; a replica that does not answer becomes a `Failure`."""
    deployment, service, config_map, secret, pods = await asyncio.gather(
        cluster.get("Deployment", owner.namespace, owner.name),
        cluster.get("Service", owner.namespace, owner.name),
        cluster.get("ConfigMap", owner.namespace, owner.policy_config_map),
        cluster.get("Secret", owner.namespace, owner.admin_key.name),
        cluster.list("Pod", owner.namespace, owner.labels),
    )
    live = [read_pod(manifest) for manifest in pods]
    seen = await asyncio.gather(*(_ask(owner, pod, replicas) for pod in live))
    return Observation(
        replicas=tuple(sorted(seen, key=lambda replica: replica.pod.name)),
        service=service,
        deployed_replicas=None if deployment is None else deployment["spec"].get("replicas", 1),
        rolling=deployment is not None and _is_rolling(deployment),
        admin_key_version=_version(secret, owner.admin_key.key),
        model_source=_annotation(deployment, ANNOTATION_MODEL),
        history=History(
            settings=_settings(config_map),
            tuning=decode(_annotation(config_map, ANNOTATION_TUNING), TuningState, TuningState()),
            recommendations=decode(_annotation(deployment, ANNOTATION_RECOMMENDATIONS), tuple[Recommendation, ...], ()),
            scaling=owner.status.scaling_history,
        ),
    )


async def _ask(owner: SmartSpec, pod: Pod, replicas: Replicas) -> Replica:
    if pod.admin_url is None or pod.terminating:
        return Replica(pod)
    answer = await replicas.load(owner, pod)
    return Replica(pod, failure=answer) if isinstance(answer, Failure) else Replica(pod, load=answer)


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
        problem=_problem(status),
    )


def _admin_url(manifest: Manifest) -> str | None:
    host = manifest.get("status", {}).get("podIP")
    for container in manifest["spec"]["containers"]:
        for port in container.get("ports", ()):
            if host and port.get("name") == ADMIN_PORT_NAME:
                return f"http://{f'[{host}]' if ':' in host else host}:{port['containerPort']}"
    return None


def _problem(status: Mapping[str, Any]) -> Problem | None:
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in WAITING_IN_ORDER:
            # What the container said before it died tells more than that it is restarted ever more slowly.
            last = container.get("lastState", {}).get("terminated", {}).get("message", "")
            return Problem(waiting.get("reason", "Waiting"), (last or waiting.get("message", "")).strip()[-500:])
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Problem(condition.get("reason", "Unschedulable"), condition.get("message", "")[:500])
    return None


def _is_rolling(deployment: Manifest) -> bool:
    """Whether pods of an older template still run, or the controller has not looked at the newest one yet."""
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return True
    return bool(status.get("replicas", 0) > status.get("updatedReplicas", 0))


def _settings(config_map: Manifest | None) -> PolicySettings | None:
    text = None if config_map is None else config_map.get("data", {}).get(POLICY_FILE)
    try:
        return None if text is None else decode_settings(text)
    except msgspec.MsgspecError:
        return None  # someone wrote nonsense into it: as good as absent, and repaired by this very reconcile


def _version(secret: Manifest | None, key: str) -> str | None:
    """A text that changes with the Secret, from its identity alone: nothing of the key leaks into annotations."""
    if secret is None or key not in secret.get("data", {}):
        return None
    identity = f"{secret['metadata'].get('uid', '')}/{secret['metadata'].get('resourceVersion', '')}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _annotation(manifest: Manifest | None, name: str) -> str | None:
    return None if manifest is None else (manifest["metadata"].get("annotations") or {}).get(name)
