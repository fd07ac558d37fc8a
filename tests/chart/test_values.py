"""The values' schema is closed, complete, and refuses with the field's name."""

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from charts import CHART, template
from control_plane import ROOT
from smartspec import __version__
from smartspec_operator.__main__ import DEFAULT_IMAGE

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("replicas", {"replicas": "two"}),
    ("replicas", {"replicas": -1}),
    ("replicaCount", {"replicaCount": 2}),
    ("image", {"image": "smartspec/operator:1"}),
    ("registry", {"image.registry": "ghcr.io"}),
    ("pullPolicy", {"image.pullPolicy": "Sometimes"}),
    ("digest", {"image.digest": "0123"}),
    ("tag", {"runtimeImage.tag": "a b"}),
    ("imagePullSecrets", {"imagePullSecrets": ["registry"]}),
    ("watchNamespace", {"watchNamespace": "a,b"}),
    ("watchNamespace", {"watchNamespace": "../etc"}),
    ("tickSeconds", {"timing.tickSeconds": 0}),
    ("scalingSeconds", {"timing.scalingSeconds": "15s"}),
    ("tick", {"timing.tick": 2}),
    ("enabled", {"crds.enabled": "yes"}),
    ("adminKeys", {"rbac.adminKeys": "all"}),
    ("adminKeyNames", {"rbac.adminKeys": "named", "rbac.adminKeyNames": ["A_B"]}),
    ("adminKeyNames", {"rbac.adminKeyNames": ["my-key"]}),
    ("adminKeyNames", {"rbac.adminKeys": "read", "rbac.adminKeyNames": ["my-key"]}),
    ("memory", {"resources.limits.memory": "lots"}),
    ("limit", {"resources.limit": {}}),
    ("effect", {"tolerations": [{"effect": "Never"}]}),
    ("podAntiAfinity", {"affinity": {"podAntiAfinity": {}}}),
    ("topologyKey", {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}),
    ("whenUnsatisfiable", {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z"}]}),
    ("podLabels", {"podLabels": {"app.kubernetes.io/name": "smartspec"}}),
    ("valueFrom", {"extraEnv": [{"name": "A", "valueFrom": {}}]}),
    ("extraEnv", {"extraEnv": {"A": "1"}}),
    ("maxUnavailable", {"podDisruptionBudget.maxUnavailable": 0}),
    ("maxUnavailable", {"podDisruptionBudget.maxUnavailable": "999%"}),
    ("maxUnavailable", {"podDisruptionBudget.maxUnavailable": "0%"}),
    ("apiServerPorts", {"networkPolicy.egress.apiServerPorts": [0]}),
    ("interval", {"monitoring.podMonitors.interval": "soon"}),
    ("grafana", {"monitoring.grafana": {}}),
    ("timeoutSeconds", {"test.timeoutSeconds": 0.5}),
]


@pytest.mark.parametrize(("field", "values"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_nonsense_is_refused_by_name(field: str, values: dict[str, Any]) -> None:
    """A value of the wrong kind, out of bounds, or of no meaning stops helm with the field named."""
    done = template(values)
    assert done.returncode != 0
    assert field in done.stderr
    assert "values don't meet the specifications of the schema" in done.stderr


def _objects(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, inner in schema.items():
            yield from _objects(inner, f"{path}/{key}")
    elif isinstance(schema, list):
        for inner in schema:
            yield from _objects(inner, path)


def test_every_level_is_closed() -> None:
    """A field that does not exist is refused wherever it stands; what other charts share under `global` is theirs."""
    found = dict(_objects(SCHEMA, ""))
    assert len(found) > 30
    for path, schema in found.items():
        if path != "/properties/global":
            assert schema.get("additionalProperties") is False or isinstance(schema["additionalProperties"], dict), path


def _leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, inner in schema.get("properties", {}).items():
        inner = SCHEMA["$defs"][inner["$ref"].rpartition("/")[2]] if name in ("runtimeImage",) else inner
        if "properties" in inner:
            yield from _leaves(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def _has(values: Any, path: str) -> bool:
    name, _, rest = path.partition(".")
    return isinstance(values, dict) and name in values and (not rest or _has(values[name], rest))


def test_every_value_has_a_default_that_says_it_exists() -> None:
    """Whoever reads values.yaml has seen all there is."""
    leaves = set(_leaves(SCHEMA)) - {"global"}
    assert len(leaves) > 40
    assert {path for path in leaves if not _has(DEFAULTS, path)} == set()


def test_every_default_is_explained() -> None:
    """Each top-level value stands under a comment, or holds values that do."""
    text = (CHART / "values.yaml").read_text()
    obvious = {"nodeSelector", "tolerations", "topologySpreadConstraints", "priorityClassName", "podAnnotations"}
    obvious |= {"podLabels", "resources", "serviceAccount"}
    for name in DEFAULTS.keys() - obvious:
        before, _, after = text.partition(f"\n{name}:")
        block = after.split("\n\n")[0]
        assert before.splitlines()[-1].startswith("#") or "  #" in block, name


def test_one_version_names_the_images() -> None:
    """The distribution, the chart's application, and the runtime that an operator without a chart would start."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (project["version"], str(chart["appVersion"])) == (__version__, __version__)
    assert f"smartspec/runtime:{__version__}" == DEFAULT_IMAGE
