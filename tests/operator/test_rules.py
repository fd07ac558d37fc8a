"""Rules over several fields: one table of cases, run against the operator and against the CRD's own CEL rules."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import msgspec
import pytest
import yaml

from smartspec_operator.resource import Spec
from smartspec_operator.rules import violations

CRD = yaml.safe_load((Path(__file__).parents[2] / "crds/smartspec.io_smartspecs.yaml").read_text())
SCHEMA: dict[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]
MODEL = {"model": {"source": "org/model"}}
DRAFT = {"source": "org/draft"}

VALID: list[dict[str, Any]] = [
    {},
    {"speculation": {"draft": DRAFT}},
    {"speculation": {"method": "DraftModel", "draft": DRAFT}},
    {"speculation": {"method": "PromptLookup"}},
    {"speculation": {"method": "Off", "draft": DRAFT}},
    {"autoscaling": {"minReplicas": 2, "maxReplicas": 2}},
    {"autoscaling": {"maxReplicas": 1}, "replicas": 3},
    {"server": {"maxNumSeqs": 32, "maxNumBatchedTokens": 32}},
    {"storage": {"cache": {"sizeLimit": "1Gi"}}},
    {"template": {"volumes": [{"name": "models"}], "env": [{"name": "X", "value": "1"}]}},
]
INVALID: list[tuple[str, dict[str, Any]]] = [
    ("spec.speculation.draft: is required", {"speculation": {"method": "DraftModel"}}),
    ("spec.speculation.draft: method PromptLookup", {"speculation": {"method": "PromptLookup", "draft": DRAFT}}),
    ("spec.autoscaling.minReplicas: must not exceed", {"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}),
    ("spec.server.maxNumBatchedTokens: must be at least", {"server": {"maxNumSeqs": 64, "maxNumBatchedTokens": 63}}),
    ("spec.server.maxNumBatchedTokens: must be at least", {"server": {"maxNumSeqs": 4000}}),
    ("spec.storage.cache: sizeLimit and", {"storage": {"cache": {"sizeLimit": "1Gi", "claimName": "x"}}}),
    ("spec.template.volumes: the names", {"template": {"volumes": [{"name": "models"}, {"name": "tmp"}]}}),
    ("spec.template.env: keys come", {"template": {"env": [{"name": "SMARTSPEC_API_KEY", "value": "secret"}]}}),
]


def by_operator(spec: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    """What the operator says."""
    running = None if old is None else old["model"]["source"]
    return violations("demo", msgspec.convert(spec, Spec), running)


def by_crd(spec: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    """What an API server with CEL would say, its defaults filled in first."""
    return list(_broken(SPEC, _defaulted(SPEC, spec), None if old is None else _defaulted(SPEC, old), "spec"))


def _defaulted(schema: dict[str, Any], value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    filled = dict(value)
    for name, inner in schema.get("properties", {}).items():
        if name not in filled and "default" in inner:
            filled[name] = copy.deepcopy(inner["default"])
        if name in filled:
            filled[name] = _defaulted(inner, filled[name])
    return filled


def _broken(schema: dict[str, Any], value: Any, old: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        environment = celpy.Environment()
        if "oldSelf" in rule["rule"] and old is None:
            continue  # a transition rule does not run on creation
        names = {"self": celpy.json_to_cel(value)} | ({"oldSelf": celpy.json_to_cel(old)} if old is not None else {})
        if not environment.program(environment.compile(rule["rule"])).evaluate(names):
            inner, _, message = rule["message"].rpartition(": ")
            yield f"{path}.{inner}: {message}" if inner else f"{path}: {message}"
    for name, inner_schema in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            before = old.get(name) if isinstance(old, dict) else None
            yield from _broken(inner_schema, value[name], before, f"{path}.{name}")


@pytest.mark.parametrize("more", VALID)
def test_sound_specs_break_no_rule(more: dict[str, Any]) -> None:
    """Both sides let them pass."""
    assert by_operator({**MODEL, **more}) == by_crd({**MODEL, **more}) == []


@pytest.mark.parametrize(("message", "more"), INVALID)
def test_broken_rules_are_told_alike(message: str, more: dict[str, Any]) -> None:
    """Both sides refuse with the same words, the field first."""
    told = by_operator({**MODEL, **more})
    assert told == by_crd({**MODEL, **more})
    assert [text.startswith(message) for text in told] == [True]


def test_the_model_cannot_be_changed() -> None:
    """Another model is another SmartSpec; the revision may move on."""
    old, new = MODEL, {"model": {"source": "org/other"}}
    assert by_operator(new, old) == by_crd(new, old) != []
    moved = {"model": {"source": "org/model", "revision": "v2"}}
    assert by_operator(moved, old) == by_crd(moved, old) == []


def test_every_rule_of_the_crd_has_a_case() -> None:
    """A rule without a case might never compile."""
    rules = set(re.findall(r"message: (.*)", yaml.safe_dump(CRD, width=1000)))
    told = {text for _, more in INVALID for text in by_crd({**MODEL, **more})}
    told |= set(by_crd({"model": {"source": "b"}}, {"model": {"source": "a"}}))
    assert len(told) == len(rules)


@pytest.mark.parametrize(("name", "good"), [("demo-1", True), ("1demo", False), ("a" * 51, False), ("De", False)])
def test_names_fit_a_service(name: str, good: bool) -> None:
    """The name is also the Service's, and names of pods are made of it; the CRD's pattern says the same."""
    assert (violations(name, msgspec.convert(MODEL, Spec)) == []) is good
    schema = SCHEMA["properties"]["metadata"]["properties"]["name"]
    assert (re.match(schema["pattern"], name) is not None and len(name) <= schema["maxLength"]) is good


def test_what_rules_touch_is_bounded() -> None:
    """An unbounded list or text makes a rule cost too much, and the API server then refuses the whole CRD."""

    def unbounded(schema: dict[str, Any], path: str) -> Iterator[str]:
        kind = schema.get("type")
        if kind == "array" and "maxItems" not in schema:
            yield path
        if kind == "string" and not ({"maxLength", "enum", "format"} & schema.keys()):
            yield path
        for name, inner in schema.get("properties", {}).items():
            if not name.startswith("value"):  # read by no rule
                yield from unbounded(inner, f"{path}.{name}")
        if isinstance(inner := schema.get("items"), dict):
            yield from unbounded(inner, f"{path}[]")

    def ruled(schema: dict[str, Any], path: str) -> Iterator[str]:
        if "x-kubernetes-validations" in schema:
            yield from unbounded(schema, path)
        for name, inner in schema.get("properties", {}).items():
            yield from ruled(inner, f"{path}.{name}")

    assert list(ruled(SPEC, "spec")) == []
