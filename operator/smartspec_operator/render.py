"""The children of a SmartSpec as manifests: pure, and the same for the same decision, so that rest means no writes."""

from typing import Any

import msgspec

from smartspec.policy.settings import PolicySettings, encode_settings
from smartspec_operator.integrations import ENGINE, LABEL_ENGINE, integrations
from smartspec_operator.resource import (
    ADMIN_KEY_VARIABLE,
    ADMIN_PORT_NAME,
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
    PORT,
    PORT_NAME,
    Manifest,
    SecretKey,
    SmartSpec,
)
from smartspec_operator.world import Decided, Observation, PolicyDecision, ScalingDecision, encode

ADMIN_PORT = 8001
SERVICE_PORT = 80
USER_ID = 65532
LAME_DUCK_SECONDS = 10
CONNECTION_AGE_SECONDS = 10
"""A Service balances connections, not requests: so old a connection gets before its client has to choose anew, and so
long it takes a new replica to get its share. A connection costs a handshake, a request seconds of computing."""
EXIT_SECONDS = 20
POLICY_FOLDER = "/etc/smartspec/policy"
API_KEY_FOLDER = "/etc/smartspec/api-key"
API_KEY_FILE = "keys"
CACHE_FOLDER = "/cache"
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


def serve_arguments(owner: SmartSpec) -> list[str]:
    """What `smartspec` is told: `serve` and flags, in plain text. Keys never appear among them."""
    spec = owner.spec
    speculation, server, method = spec.speculation, spec.server, spec.speculation.method
    arguments = ["serve", spec.model.source, "--served-name", owner.served_name, "--dtype", spec.model.dtype]
    optional = {"--revision": spec.model.revision, "--max-model-len": spec.model.max_model_len}
    if speculation.draft is not None and method in ("Auto", "DraftModel"):
        optional |= {"--draft": speculation.draft.source, "--draft-revision": speculation.draft.revision}
    for flag, value in optional.items():
        if value is not None:
            arguments += [flag, str(value)]
    if method in ("DraftModel", "Off"):
        arguments.append("--no-prompt-lookup")
    drain = spec.template.termination_grace_period_seconds - LAME_DUCK_SECONDS - EXIT_SECONDS
    flags: dict[str, Any] = {
        "--compile": spec.model.compile.lower(),
        "--policy": owner.policy_name,
        "--num-speculative-tokens": speculation.max_tokens,
        "--verification": speculation.verification.lower(),
        "--max-num-seqs": server.max_num_seqs,
        "--max-num-batched-tokens": server.max_num_batched_tokens,
        "--max-queued-requests": server.max_queued_requests,
        "--host": "0.0.0.0",
        "--port": PORT,
        "--admin-host": "0.0.0.0",
        "--admin-port": ADMIN_PORT,
        "--policy-file": f"{POLICY_FOLDER}/{POLICY_FILE}",
        "--lame-duck": LAME_DUCK_SECONDS,
        "--max-connection-age": CONNECTION_AGE_SECONDS,
        "--drain-timeout": drain,
    }
    if server.api_key_secret_ref is not None:
        flags["--api-key-file"] = f"{API_KEY_FOLDER}/{API_KEY_FILE}"
    return arguments + [str(part) for flag in flags.items() for part in flag]


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
                "spec": _pod(owner, image),
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


def _pod(owner: SmartSpec, image: str) -> dict[str, Any]:
    template = owner.spec.template
    optional = {
        "imagePullSecrets": template.image_pull_secrets,
        "nodeSelector": template.node_selector,
        "tolerations": template.tolerations,
        "affinity": template.affinity,
        "serviceAccountName": template.service_account_name,
        "runtimeClassName": template.runtime_class_name,
        "priorityClassName": template.priority_class_name,
    }
    cache_volume: dict[str, Any] = {"persistentVolumeClaim": {"claimName": owner.cache_claim}}
    if owner.cache_claim is None:
        limit = owner.spec.storage.cache.size_limit
        cache_volume = {"emptyDir": {"sizeLimit": limit} if limit else {}}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": template.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(owner, image)],
        "volumes": [
            {"name": "cache", **cache_volume},
            {"name": "tmp", "emptyDir": {}},
            {"name": "policy", "configMap": {"name": owner.policy_config_map}},
            *_api_key_volume(owner),
            *template.volumes,
        ],
        **{key: value for key, value in optional.items() if value},
    }


def _api_key_volume(owner: SmartSpec) -> list[dict[str, Any]]:
    """The file with the keys of clients: unlike a variable it follows the Secret while replicas run."""
    reference = owner.spec.server.api_key_secret_ref
    if reference is None:
        return []
    items = [{"key": reference.key, "path": API_KEY_FILE}]
    return [{"name": "api-key", "secret": {"secretName": reference.name, "items": items, "optional": False}}]


def _container(owner: SmartSpec, image: str) -> dict[str, Any]:
    template = owner.spec.template
    keys = [
        {"name": volume["name"], "mountPath": API_KEY_FOLDER, "readOnly": True} for volume in _api_key_volume(owner)
    ]
    optional = {"imagePullPolicy": template.image_pull_policy, "resources": template.resources}

    def probe(path: str, **more: Any) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": PORT_NAME}, "timeoutSeconds": 2, **more}

    return {
        "name": "smartspec",
        "image": template.image or image,
        "command": ["smartspec"],
        # Kubelet would put variables in the place of $(NAME), the hub's token too; $$ is its way to write a plain $.
        "args": [argument.replace("$", "$$") for argument in serve_arguments(owner)],
        "env": _environment(owner),
        "ports": [
            {"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"},
            {"name": ADMIN_PORT_NAME, "containerPort": ADMIN_PORT, "protocol": "TCP"},
        ],
        "startupProbe": probe("/health", periodSeconds=5, failureThreshold=360),
        "livenessProbe": probe("/health", periodSeconds=10, failureThreshold=6),
        "readinessProbe": probe("/ready", periodSeconds=2, failureThreshold=2),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE_FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "policy", "mountPath": POLICY_FOLDER, "readOnly": True},
            *keys,
            *template.volume_mounts,
        ],
        **{key: value for key, value in optional.items() if value},
    }


def _environment(owner: SmartSpec) -> list[dict[str, Any]]:
    def from_secret(name: str, secret: SecretKey | None) -> list[dict[str, Any]]:
        if secret is None:
            return []
        return [{"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}]

    own = owner.spec.template.env
    ours = [
        *from_secret(ADMIN_KEY_VARIABLE, owner.admin_key),
        *from_secret("HF_TOKEN", owner.spec.model.hub_token_secret_ref),
        # The root file system is read-only: what libraries write goes to the mounted folders.
        {"name": "HOME", "value": "/tmp"},
        {"name": "HF_HOME", "value": f"{CACHE_FOLDER}/huggingface"},
        {"name": "XDG_CACHE_HOME", "value": CACHE_FOLDER},
    ]
    named = {variable.get("name") for variable in own}
    return [variable for variable in ours if variable["name"] not in named] + list(own)
