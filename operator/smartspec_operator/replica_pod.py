"""The pod of one replica: what it runs, may and mounts, and how it is asked whether it is well."""

from typing import Any

from smartspec_operator.resource import (
    ADMIN_KEY_VARIABLE,
    ADMIN_PORT_NAME,
    POLICY_FILE,
    PORT,
    PORT_NAME,
    SecretKey,
    SmartSpec,
)

ADMIN_PORT = 8001
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


def replica_pod(owner: SmartSpec, image: str) -> dict[str, Any]:
    """The spec of a replica's pod, running *image* unless the SmartSpec names another."""
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
