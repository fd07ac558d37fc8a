"""The children of a SmartSpec as manifests: pure, and the same for the same decision, so that rest means no writes."""

from typing import Any

import msgspec

from smartspec.policy.settings import PolicySettings, encode_settings
from smartspec_operator.integrations import ENGINE, LABEL_ENGINE, integrations
from smartspec_operator.replica_pod import replica_pod
from smartspec_operator.resource import (
    ANNOTATION_ADMIN_KEY,
    ANNOTATION_DECIDED,
    ANNOTATION_DELETION_COST,
    ANNOTATION_MODEL,
    ANNOTATION_RECOMMENDATIONS,
    ANNOTATION_TUNING,
    BUDGET,
    FIELD_MANAGER,
    LABEL_MANAGED_BY,
    POLICY_FILE,
    PORT_NAME,
    Manifest,
    SmartSpec,
)
from smartspec_operator.world import Decided, Observation, PolicyDecision, ScalingDecision, encode

SERVICE_PORT = 80
DELETE_FIRST, DELETE_LAST = "-1000", "1000"


def children(
    owner: SmartSpec, seen: Observation, policy: PolicyDecision, scale: ScalingDecision, *, image: str
) -> list[Manifest]:
    """All children but the key, in the order in which they need each other, and the marks on pods that leave.

    The marks come before the Deployment is lowered: its ReplicaSet goes by them.
    """
    return [
        _policy_config_map(owner, policy),
        _service(owner),
        *integrations(owner, seen.known_kinds),
        *_budget(owner, seen, scale),
        *_cache_claim(owner),
        *(_victim(owner, pod, DELETE_LAST if pod in scale.busy else DELETE_FIRST) for pod in scale.victims),
        _deployment(owner, seen, scale, image),
    ]


def admin_key_secret(owner: SmartSpec, key: str) -> Manifest:
    """The generated admin key: written once, and not part of `children`, because nobody need know it to keep it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": owner.child_metadata(owner.admin_key.name),
        "type": "Opaque",
        "stringData": {owner.admin_key.key: key},
    }


def _policy_config_map(owner: SmartSpec, policy: PolicyDecision) -> Manifest:
    annotations = {ANNOTATION_TUNING: encode(policy.state)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owner.child_metadata(owner.policy_config_map, annotations=annotations),
        "data": {POLICY_FILE: settings_text(policy.settings)},
    }


def settings_text(settings: PolicySettings) -> str:
    """The policy as replicas read it from the mounted file."""
    return encode_settings(settings).decode()


def _service(owner: SmartSpec) -> Manifest:
    # The admin port stands in no Service: only the operator speaks to it, pod by pod.
    port = {"name": PORT_NAME, "port": SERVICE_PORT, "targetPort": PORT_NAME, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.child_metadata(owner.name),
        "spec": {"type": "ClusterIP", "selector": owner.labels, "ports": [port]},
    }


def _budget(owner: SmartSpec, seen: Observation, scale: ScalingDecision) -> list[Manifest]:
    """When nodes are drained, one replica after the other. With a single one its node could not be drained at all."""
    if BUDGET not in seen.known_kinds or scale.desired < 2:
        return []
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": owner.labels}}
    return [{"apiVersion": "policy/v1", "kind": BUDGET, "metadata": owner.child_metadata(owner.name), "spec": spec}]


def _cache_claim(owner: SmartSpec) -> list[Manifest]:
    """The claim for downloaded weights, where one is to be made; it goes with its owner."""
    cache = owner.spec.storage.cache
    if cache.size is None:
        return []
    spec: dict[str, Any] = {"accessModes": [cache.access_mode], "resources": {"requests": {"storage": cache.size}}}
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    metadata = owner.child_metadata(f"{owner.name}-cache")
    return [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}]


def _victim(owner: SmartSpec, pod: str, cost: str) -> Manifest:
    """The mark by which the ReplicaSet controller orders pods that are equally ready (from Kubernetes 1.22 on)."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod,
            "namespace": owner.namespace,
            "annotations": {ANNOTATION_DELETION_COST: cost},
        },
    }


def _deployment(owner: SmartSpec, seen: Observation, scale: ScalingDecision, image: str) -> Manifest:
    rollout = owner.spec.template.rollout
    annotations = {ANNOTATION_MODEL: owner.spec.model.source, ANNOTATION_DECIDED: _decided(scale)}
    if scale.recommendations:
        annotations[ANNOTATION_RECOMMENDATIONS] = encode(scale.recommendations)
    pod_annotations = dict(owner.spec.template.annotations)
    if (version := admin_key_version(seen)) is not None:
        pod_annotations[ANNOTATION_ADMIN_KEY] = version
    pod_labels = {**owner.labels, LABEL_MANAGED_BY: FIELD_MANAGER}
    if owner.spec.integrations.inference_pool is not None:
        pod_labels[LABEL_ENGINE] = ENGINE
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": owner.child_metadata(owner.name, annotations=annotations),
        "spec": {
            "replicas": scale.replicas,
            "selector": {"matchLabels": owner.labels},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": rollout.max_unavailable, "maxSurge": rollout.max_surge},
            },
            "progressDeadlineSeconds": 1800,  # weights are large: a replica may load for many minutes
            "revisionHistoryLimit": 3,
            "template": {
                "metadata": {"labels": pod_labels, "annotations": pod_annotations},
                "spec": replica_pod(owner, image),
            },
        },
    }


def _decided(scale: ScalingDecision) -> str:
    """The decision as the Deployment keeps it: without what is measured later, which is worth no write of its own."""
    record = scale.history[-1] if scale.history else None
    noted = None if record is None else msgspec.structs.replace(record, measured_tokens_per_second=None)
    return encode(Decided(scale.desired, noted))


def admin_key_version(seen: Observation) -> str | None:
    """The version of the admin key in the pods' template: another one replaces the pods, which read it at their start.

    A Secret gets a new version by any edit of its labels or annotations, too, and rolling a fleet for that costs much.
    Whether the key itself changed is known without storing anything of it: the replicas know, and refuse the new one.
    So the version that is deployed stays until a pod that was made for it refuses the key of now. Pods made for an
    older one are being replaced already, and those that have not started yet will read the key of then.
    """
    if seen.admin_key_version is not None and (seen.deployed_key_version is None or seen.is_key_outdated):
        return seen.admin_key_version
    return seen.deployed_key_version
