"""The custom resource as frozen types: its names, its spec, and how the API's dict becomes one of them.

Field names, defaults and bounds equal those of `crds/smartspec.io_smartspecs.yaml`; a test holds the two together.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from smartspec.policy.settings import PolicyName
from smartspec_operator.reported import Status

Manifest = Mapping[str, Any]
"""A Kubernetes object as the API's JSON has it."""

GROUP = "smartspec.io"
VERSION = "v1alpha1"
PLURAL = "smartspecs"
KIND = "SmartSpec"
FIELD_MANAGER = "smartspec-operator"

LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
ANNOTATION_MODEL = f"{GROUP}/model"
ANNOTATION_ADMIN_KEY = f"{GROUP}/admin-key-version"
ANNOTATION_RECOMMENDATIONS = f"{GROUP}/recommendations"
ANNOTATION_DECIDED = f"{GROUP}/decided"
ANNOTATION_TUNING = f"{GROUP}/tuning"
ANNOTATION_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

BUDGET = "PodDisruptionBudget"
INTEGRATIONS = ("InferencePool", BUDGET, "PodMonitor")
"""Kinds of children that only some clusters know; those that the spec asks for no more are removed."""

PORT = 8000
PORT_NAME = "http"
ADMIN_PORT_NAME = "admin"
POLICY_FILE = "policy.json"
ADMIN_KEY_VARIABLE = "SMARTSPEC_ADMIN_KEY"

Compile = Literal["Auto", "On", "Off"]
Method = Literal["Auto", "DraftModel", "PromptLookup", "Off"]
Policy = Literal["Request", "Batch", "Fixed", "Off"]
Verification = Literal["Auto", "Coupled", "Rejection"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
AccessMode = Literal["ReadWriteOnce", "ReadWriteMany"]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]

POLICY_NAMES: Mapping[Policy, PolicyName] = {"Request": "request", "Batch": "batch", "Fixed": "fixed", "Off": "off"}

# What becomes an argument must not look like a flag; what becomes part of a path in the API must not leave its place.
PLAIN = r"^[A-Za-z0-9_./~@][^\x00-\x1f\x7f]*$"
Source = Annotated[str, Meta(min_length=1, max_length=1024, pattern=PLAIN)]
ShortText = Annotated[str, Meta(min_length=1, max_length=253, pattern=PLAIN)]
ObjectName = Annotated[str, Meta(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
KeyName = Annotated[str, Meta(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
Quantity = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?([KMGTPE]i?|k|m)?$")]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
StabilizationSeconds = Annotated[int, Meta(ge=0, le=3600)]
Replicas = Annotated[int, Meta(ge=0, le=1000)]
ScaledReplicas = Annotated[int, Meta(ge=1, le=1000)]
PodsOrPercent = (
    Annotated[int, Meta(ge=0, le=1000)] | Annotated[str, Meta(max_length=4, pattern=r"^(0|[1-9][0-9]?|100)%$")]
)


class InvalidSpecError(ValueError):
    """The resource cannot be acted upon; the message names each offending field."""


class _Part(Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """A part of the spec: camelCase in the API, refused when it holds a field that does not exist."""


class SecretKey(_Part, frozen=True):
    """One key of a Secret in the resource's own namespace."""

    name: ObjectName
    key: KeyName


class ModelSpec(_Part, frozen=True):
    """Which weights to serve."""

    source: Source
    revision: ShortText | None = None
    served_name: ShortText | None = None
    dtype: Dtype = "auto"
    max_model_len: Annotated[int, Meta(ge=1, le=16_777_216)] | None = None
    compile: Compile = "Auto"
    hub_token_secret_ref: SecretKey | None = None


class DraftSpec(_Part, frozen=True):
    """The small model that drafts."""

    source: Source
    revision: ShortText | None = None


class SpeculationSpec(_Part, frozen=True):
    """How to speculate."""

    method: Method = "Auto"
    draft: DraftSpec | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=32)] = 8
    policy: Policy = "Request"
    verification: Verification = "Auto"


class SloSpec(_Part, frozen=True):
    """What users are promised; an absent bound promises nothing."""

    ttft_seconds: Seconds | None = None
    tpot_seconds: Seconds | None = None
    percentile: Annotated[int, Meta(ge=50, le=99)] = 95


class AutoscalingSpec(_Part, frozen=True):
    """The bounds of scaling and how long it hesitates."""

    max_replicas: ScaledReplicas
    min_replicas: ScaledReplicas = 1
    scale_up_stabilization_seconds: StabilizationSeconds = 0
    scale_down_stabilization_seconds: StabilizationSeconds = 300


class ServerSpec(_Part, frozen=True):
    """Bounds of one replica, and the keys its two ports ask for."""

    max_num_seqs: Annotated[int, Meta(ge=1, le=4096)] = 64
    max_num_batched_tokens: Annotated[int, Meta(ge=1, le=1_048_576)] = 2048
    max_queued_requests: Annotated[int, Meta(ge=0, le=1_000_000)] = 256
    api_key_secret_ref: SecretKey | None = None
    admin_key_secret_ref: SecretKey | None = None


class RolloutSpec(_Part, frozen=True):
    """How replicas are replaced, as in a Deployment: so many more than wanted meanwhile, so many fewer."""

    max_surge: PodsOrPercent = 1
    max_unavailable: PodsOrPercent = 0


class TemplateSpec(_Part, frozen=True):
    """What the replicas' pods look like beyond the model; Kubernetes' own types, passed through."""

    image: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    image_pull_policy: PullPolicy | None = None
    image_pull_secrets: list[dict[str, Any]] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    affinity: dict[str, Any] = field(default_factory=dict)
    env: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    volume_mounts: list[dict[str, Any]] = field(default_factory=list)
    service_account_name: ObjectName | None = None
    runtime_class_name: ObjectName | None = None
    priority_class_name: ObjectName | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    termination_grace_period_seconds: Annotated[int, Meta(ge=31, le=86_400)] = 330
    rollout: RolloutSpec = RolloutSpec()


class CacheSpec(_Part, frozen=True):
    """Where downloaded weights are kept: an emptyDir of bounded size, a claim that exists, or one made of this size."""

    size_limit: Quantity | None = None
    claim_name: ObjectName | None = None
    size: Quantity | None = None
    storage_class_name: ObjectName | None = None
    access_mode: AccessMode = "ReadWriteOnce"


class PodMonitorSpec(_Part, frozen=True):
    """A PodMonitor for the replicas' metrics, with the labels by which a Prometheus finds it."""

    labels: dict[str, str] = field(default_factory=dict)


class InferencePoolSpec(_Part, frozen=True):
    """An InferencePool of the replicas, for a gateway that asks this endpoint picker."""

    endpoint_picker: ObjectName
    port: Annotated[int, Meta(ge=1, le=65_535)] = 9002


class IntegrationsSpec(_Part, frozen=True):
    """Objects of kinds that only some clusters know; absent, none is made."""

    pod_monitor: PodMonitorSpec | None = None
    inference_pool: InferencePoolSpec | None = None


class StorageSpec(_Part, frozen=True):
    """The replicas' disks."""

    cache: CacheSpec = CacheSpec()


class Spec(_Part, frozen=True):
    """What is wished for."""

    model: ModelSpec
    speculation: SpeculationSpec = SpeculationSpec()
    slo: SloSpec = SloSpec()
    replicas: Replicas | None = None
    autoscaling: AutoscalingSpec | None = None
    server: ServerSpec = ServerSpec()
    template: TemplateSpec = field(default_factory=TemplateSpec)
    storage: StorageSpec = StorageSpec()
    integrations: IntegrationsSpec = IntegrationsSpec()


class SmartSpec(Struct, frozen=True):
    """One SmartSpec: its identity, what is wished for, and what was last reported of it."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: Spec
    status: Status = Status()

    @property
    def labels(self) -> dict[str, str]:
        """What selects the replicas of this resource; immutable in a Deployment, so never extended."""
        return {LABEL_NAME: "smartspec", LABEL_INSTANCE: self.name}

    @property
    def policy_config_map(self) -> str:
        """The name of the ConfigMap that keeps the policy for replicas that start."""
        return f"{self.name}-policy"

    @property
    def admin_key(self) -> SecretKey:
        """The Secret's key that opens the admin port: the user's, or the generated one."""
        return self.spec.server.admin_key_secret_ref or SecretKey(f"{self.name}-admin-key", "key")

    @property
    def cache_claim(self) -> str | None:
        """The name of the claim that keeps downloaded weights: the user's, or ours; None where there is none."""
        cache = self.spec.storage.cache
        return cache.claim_name or (f"{self.name}-cache" if cache.size is not None else None)

    @property
    def policy_name(self) -> PolicyName:
        """The runtime's name of the policy: a method of `Off` switches every policy off."""
        return "off" if self.spec.speculation.method == "Off" else POLICY_NAMES[self.spec.speculation.policy]

    @property
    def served_name(self) -> str:
        """The model id clients use: the served name, else the last part of the source."""
        return self.spec.model.served_name or self.spec.model.source.rstrip("/").rpartition("/")[2]

    def child_metadata(self, name: str, **more: Any) -> dict[str, Any]:
        """Metadata of a child: labels by which it is found, and the owner with whom it goes."""
        owner = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "name": self.name, "uid": self.uid}
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": {**self.labels, LABEL_MANAGED_BY: FIELD_MANAGER},
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
            **more,
        }


def parse(body: Manifest) -> SmartSpec:
    """Read the API's object; raises `InvalidSpecError` for a field of the wrong type, out of bounds or unknown.

    Rules over several fields are `rules.violations`'s.
    """
    metadata = body["metadata"]
    try:
        spec = msgspec.convert(body.get("spec"), Spec)
    except msgspec.ValidationError as error:
        raise InvalidSpecError(_at_field(str(error))) from None
    return SmartSpec(
        name=metadata["name"],
        namespace=metadata.get("namespace", "default"),
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 0),
        spec=spec,
        status=previous_status(body),
    )


def readable(body: Manifest) -> SmartSpec:
    """The resource with those parts of its spec that can be read, each by itself: enough to look at what runs."""
    wished = body.get("spec")
    spec: dict[str, Any] = {"model": {"source": "unknown"}}
    for name, value in wished.items() if isinstance(wished, Mapping) else ():
        try:
            parse({**body, "spec": {**spec, name: value}})
        except InvalidSpecError:
            continue
        spec[name] = value
    return parse({**body, "spec": spec})


def previous_status(body: Manifest) -> Status:
    """What was last reported; an empty status where there is none, or where another version wrote it."""
    try:
        return msgspec.convert(body.get("status") or {}, Status)
    except msgspec.ValidationError:
        return Status()


def _at_field(message: str) -> str:
    """`Expected int - at $.model.source` as `spec.model.source: expected int`."""
    what, _, path = message.partition(" - at `$")
    where = "spec" + path.rstrip("`") if path else "spec"
    return f"{where}: {what[:1].lower()}{what[1:]}"
