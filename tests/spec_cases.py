"""Invalid and hostile SmartSpecs: one table, run against the schema, the CEL rules, the operator and a real API server.

Nothing of them may be carried out, and whoever wrote one reads which field is wrong.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

MODEL: dict[str, Any] = {"model": {"source": "org/model"}}
DRAFT = {"source": "org/draft"}

Judge = Literal["schema", "rule", "operator", "child", "pod"]
"""Who refuses first: the CRD's structural schema; a rule, in CEL and in the operator alike; the operator alone; the API
server, when the operator tries the children out; kubelet or the controllers, once there are pods."""


@dataclass(frozen=True)
class Case:
    """One SmartSpec that must not be: *spec* over the least one, refused by *judge* with *says* in its words."""

    name: str
    judge: Judge
    says: str
    spec: dict[str, Any] = field(default_factory=dict)
    called: str = "demo"

    @property
    def body(self) -> dict[str, Any]:
        """The resource as it would be applied."""
        return {
            "apiVersion": "smartspec.io/v1alpha1",
            "kind": "SmartSpec",
            "metadata": {"name": self.called},
            "spec": {**MODEL, **self.spec},
        }


def _template(**fields: Any) -> dict[str, Any]:
    return {"template": fields}


def _env(**variable: Any) -> dict[str, Any]:
    return _template(env=[variable])


CASES: tuple[Case, ...] = (
    # wrong types and absurd bounds
    Case("no source", "schema", "spec.model.source", {"model": {}}),
    Case("a number as source", "schema", "spec.model.source", {"model": {"source": 3}}),
    Case("an empty source", "schema", "spec.model.source", {"model": {"source": ""}}),
    Case("a huge source", "schema", "spec.model.source", {"model": {"source": "x" * 100_000}}),
    Case("a model as text", "schema", "spec.model", {"model": "org/model"}),
    Case("no such dtype", "schema", "spec.model.dtype", {"model": {"source": "m", "dtype": "int3"}}),
    Case("no such method", "schema", "spec.speculation.method", {"speculation": {"method": "Magic"}}),
    Case("tokens as text", "schema", "spec.speculation.maxTokens", {"speculation": {"maxTokens": "eight"}}),
    Case("too many tokens", "schema", "spec.speculation.maxTokens", {"speculation": {"maxTokens": 10**6}}),
    Case("an objective of nothing", "schema", "spec.slo.tpotSeconds", {"slo": {"tpotSeconds": 0}}),
    Case("every request", "schema", "spec.slo.percentile", {"slo": {"percentile": 100}}),
    Case("negative replicas", "schema", "spec.replicas", {"replicas": -1}),
    Case("a billion replicas", "schema", "spec.autoscaling.maxReplicas", {"autoscaling": {"maxReplicas": 10**9}}),
    Case("scaling to zero", "schema", "spec.autoscaling.minReplicas", {
        "autoscaling": {"minReplicas": 0, "maxReplicas": 1},
    }),
    Case("no upper bound", "schema", "spec.autoscaling.maxReplicas", {"autoscaling": {"minReplicas": 1}}),
    Case("a batch of nobody", "schema", "spec.server.maxNumSeqs", {"server": {"maxNumSeqs": 0}}),
    Case("no time to drain", "schema", "spec.template.terminationGracePeriodSeconds", _template(
        terminationGracePeriodSeconds=30
    )),
    Case("fewer than none ahead", "schema", "spec.template.rollout.maxSurge", _template(rollout={"maxSurge": -1})),
    Case("more than all away", "schema", "spec.template.rollout.maxUnavailable", _template(
        rollout={"maxUnavailable": "101%"}
    )),
    Case("a number in quotes", "schema", "spec.template.rollout.maxUnavailable", _template(
        rollout={"maxUnavailable": "1"}
    )),
    Case("a rollout as text", "schema", "spec.template.rollout", _template(rollout="Recreate")),
    Case("a cache without a size", "schema", "spec.storage.cache.size", {"storage": {"cache": {"size": "lots"}}}),
    Case("a pool without a picker", "schema", "spec.integrations.inferencePool.endpointPicker", {
        "integrations": {"inferencePool": {}},
    }),
    # huge texts and lists
    Case("a megabyte of environment", "schema", "spec.template.env", _env(name="X", value="x" * 1_000_000)),
    Case("three hundred variables", "schema", "spec.template.env", _template(
        env=[{"name": f"X{i}", "value": ""} for i in range(300)]
    )),
    Case("annotations beyond what an object may carry", "child", "spec.template.annotations", _template(
        annotations={"a.example/x": "x" * 300_000}
    )),
    # names that break labels, arguments and paths
    Case("a name that is no label", "schema", "metadata.name", called="1demo"),
    Case("a name too long for its children", "schema", "metadata.name", called="a" * 51),
    Case("a name with dots", "schema", "metadata.name", called="demo.example"),
    Case("a source that is a flag", "schema", "spec.model.source", {"model": {"source": "--trust-remote-code"}}),
    Case("a source of two lines", "schema", "spec.model.source", {"model": {"source": "org/model\nserve"}}),
    Case("a revision that is a flag", "schema", "spec.model.revision", {
        "model": {"source": "org/model", "revision": "--admin-host=0.0.0.0"},
    }),
    Case("a source that leads out", "rule", "spec.model.source", {"model": {"source": "models/../../etc/passwd"}}),
    Case("a draft that leads out", "rule", "spec.speculation.draft.source", {
        "speculation": {"draft": {"source": "../.."}},
    }),
    Case("a Secret of another place", "schema", "spec.server.adminKeySecretRef.name", {
        "server": {"adminKeySecretRef": {"name": "../../kube-system/secrets/token", "key": "token"}},
    }),
    Case("a Secret without a key", "schema", "spec.server.apiKeySecretRef.key", {
        "server": {"apiKeySecretRef": {"name": "keys"}},
    }),
    Case("a key that is a path", "schema", "spec.model.hubTokenSecretRef.key", {
        "model": {"source": "org/model", "hubTokenSecretRef": {"name": "hub", "key": "../token"}},
    }),
    Case("a claim of another place", "schema", "spec.storage.cache.claimName", {
        "storage": {"cache": {"claimName": "../pods/x"}},
    }),
    # contradictions
    Case("a missing draft", "rule", "spec.speculation.draft", {"speculation": {"method": "DraftModel"}}),
    Case("a draft for nothing", "rule", "spec.speculation.draft", {
        "speculation": {"method": "PromptLookup", "draft": DRAFT},
    }),
    Case("more at least than at most", "rule", "spec.autoscaling.minReplicas", {
        "autoscaling": {"minReplicas": 3, "maxReplicas": 2},
    }),
    Case("less than a token for each", "rule", "spec.server.maxNumBatchedTokens", {
        "server": {"maxNumSeqs": 64, "maxNumBatchedTokens": 63},
    }),
    Case("two caches", "rule", "spec.storage.cache", {
        "storage": {"cache": {"sizeLimit": "1Gi", "claimName": "weights"}},
    }),
    Case("a volume of our name", "rule", "spec.template.volumes", _template(volumes=[{"name": "tmp", "emptyDir": {}}])),
    Case("a rollout that cannot move", "rule", "spec.template.rollout.maxUnavailable", _template(
        rollout={"maxSurge": 0}
    )),
    Case("a rollout of no percent", "rule", "spec.template.rollout.maxUnavailable", _template(
        rollout={"maxSurge": "0%", "maxUnavailable": "0%"}
    )),
    Case("a volume in the place of the keys", "rule", "spec.template.volumes", _template(
        volumes=[{"name": "api-key", "emptyDir": {}}]
    )),
    Case("a mount over the keys", "rule", "spec.template.volumeMounts", _template(
        volumes=[{"name": "mine", "emptyDir": {}}],
        volumeMounts=[{"name": "mine", "mountPath": "//etc/smartspec/api-key/"}],
    )),
    Case("a key in plain sight", "rule", "spec.template.env", _env(name="SMARTSPEC_API_KEY", value="hunter2")),
    Case("the node's own disk", "operator", "spec.template.volumes", _template(
        volumes=[{"name": "root", "hostPath": {"path": "/"}}]
    )),
    # what no pod can be made of
    Case("an amount of nothing known", "child", "spec.template.resources", _template(
        resources={"limits": {"cpu": "lots"}}
    )),
    Case("more wanted than allowed", "child", "spec.template.resources", _template(
        resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}
    )),
    Case("a label that is none", "child", "spec.template.nodeSelector", _template(nodeSelector={"a b": "c"})),
    Case("a toleration of no kind", "child", "spec.template.tolerations", _template(
        tolerations=[{"key": "gpu", "operator": "Sometimes"}]
    )),
    Case("an affinity of no kind", "child", "spec.template.affinity", _template(affinity={"nodeAffinityy": {}})),
    Case("a variable that is none", "child", "spec.template.env", _env(name="A=B", value="c")),
    Case("a mount of no volume", "child", "spec.template.volumeMounts", _template(
        volumeMounts=[{"name": "absent", "mountPath": "/models"}]
    )),
    Case("a mount over ours", "child", "spec.template.volumeMounts", _template(
        volumes=[{"name": "mine", "emptyDir": {}}], volumeMounts=[{"name": "mine", "mountPath": "/tmp"}]
    )),
    Case("a volume of two kinds", "child", "spec.template.volumes", _template(
        volumes=[{"name": "both", "emptyDir": {}, "configMap": {"name": "x"}}]
    )),
    Case("an annotation that is none", "child", "spec.template.annotations", _template(annotations={"a b": "c"})),
    # what shows only in pods
    Case("a priority that does not exist", "pod", "spec.template.priorityClassName", _template(
        priorityClassName="no-such-priority"
    )),
    Case("an admin key that does not exist", "pod", "spec.server.adminKeySecretRef", {
        "server": {"adminKeySecretRef": {"name": "absent", "key": "key"}},
    }),
    Case("an image that does not exist", "pod", "spec.template.image", _template(image="localhost/no/such:image")),
    Case("an API key that does not exist", "pod", "spec.server.apiKeySecretRef", {
        "server": {"apiKeySecretRef": {"name": "absent", "key": "key"}},
    }),
)  # fmt: skip
"""All of them."""


def of(*judges: Judge) -> list[Case]:
    """The cases that these refuse."""
    return [case for case in CASES if case.judge in judges]
