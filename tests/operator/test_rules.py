"""Rules over several fields: one table of cases, run against the operator and against the CRD's own CEL rules."""

import copy
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from smartspec_operator.resource import InvalidSpecError, Spec, parse
from smartspec_operator.rules import violations
from spec_cases import DRAFT, MODEL, Case, of

CRD = yaml.safe_load((Path(__file__).parents[2] / "crds/smartspec.io_smartspecs.yaml").read_text())
SCHEMA: dict[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]

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
    {"template": {"rollout": {}}},
    {"template": {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}},
    {"template": {"rollout": {"maxSurge": "25%", "maxUnavailable": "0%"}}},
    {"template": {"volumes": [{"name": "models"}], "env": [{"name": "X", "value": "1"}]}},
]
INVALID = [(case.says, case.spec) for case in of("rule")]


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


@functools.cache
def _program(rule: str) -> celpy.Runner:
    """The rule, compiled: where that fails, so would the installation of the CRD."""
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _broken(schema: dict[str, Any], value: Any, old: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"] and old is None:
            continue  # a transition rule does not run on creation
        names = {"self": celpy.json_to_cel(value)} | ({"oldSelf": celpy.json_to_cel(old)} if old is not None else {})
        if not _program(rule["rule"]).evaluate(names):
            inner, _, message = rule["message"].rpartition(": ")
            yield f"{path}.{inner}: {message}" if inner else f"{path}: {message}"
    for name, inner_schema in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            before = old.get(name) if isinstance(old, dict) else None
            yield from _broken(inner_schema, value[name], before, f"{path}.{name}")
    for element in value if isinstance(value, list) else ():
        yield from _broken(schema.get("items", {}), element, None, f"{path}[]")


def _ruled(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Every rule, with the schema that it stands on and its path."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path, schema, rule
    for name, inner in schema.get("properties", {}).items():
        yield from _ruled(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(key), dict):
            yield from _ruled(inner, f"{path}[]")


RULES = list(_ruled(SCHEMA, ""))


@pytest.mark.parametrize("more", VALID)
def test_sound_specs_break_no_rule(more: dict[str, Any]) -> None:
    """Both sides let them pass."""
    assert by_operator({**MODEL, **more}) == by_crd({**MODEL, **more}) == []


@pytest.mark.parametrize(("message", "more"), INVALID)
def test_broken_rules_are_told_alike(message: str, more: dict[str, Any]) -> None:
    """Both sides refuse with the same words, the field first."""
    told = by_operator({**MODEL, **more})
    assert told == by_crd({**MODEL, **more})
    assert [text.startswith(f"{message}: ") for text in told] == [True]


@pytest.mark.parametrize("case", of("operator"), ids=lambda case: case.name)
def test_what_cel_cannot_see_the_operator_refuses(case: Case) -> None:
    """Fields that are passed through unread are none that a rule of the CRD could name."""
    told = by_operator(case.body["spec"])
    assert [text.startswith(f"{case.says}: ") for text in told] == [True]
    assert by_crd(case.body["spec"]) == []


@pytest.mark.parametrize("case", of("schema"), ids=lambda case: case.name)
def test_what_the_schema_refuses_the_operator_refuses(case: Case) -> None:
    """The same bounds on both sides, and the operator names the field; lists inside pods are the API server's own."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(case.body, SCHEMA, cls=jsonschema.Draft4Validator)
    if case.says == "spec.template.env":
        return
    where, _, field = case.says.rpartition(".")
    assert told(case).startswith((f"{case.says}: ", f"{where}: object missing required field `{field}`"))


def told(case: Case) -> str:
    """What the operator says of a case."""
    try:
        parsed = parse(case.body)
    except InvalidSpecError as error:
        return str(error)
    return "; ".join(violations(parsed.name, parsed.spec))


def test_the_model_cannot_be_changed() -> None:
    """Another model is another SmartSpec; the revision may move on."""
    old, new = MODEL, {"model": {"source": "org/other"}}
    assert by_operator(new, old) == by_crd(new, old) != []
    moved = {"model": {"source": "org/model", "revision": "v2"}}
    assert by_operator(moved, old) == by_crd(moved, old) == []


def test_every_rule_of_the_crd_has_a_case() -> None:
    """Each is broken by a case of the table, and kept by another that gives it something to look at."""
    told = {text for _, more in INVALID for text in by_crd({**MODEL, **more})}
    told |= set(by_crd({"model": {"source": "b"}}, {"model": {"source": "a"}}))
    assert len(told) == len(RULES)


@pytest.mark.parametrize(("path", "schema", "rule"), RULES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_rule_is_one_that_an_api_server_takes(path: str, schema: dict[str, Any], rule: dict[str, str]) -> None:
    """It compiles; every field it reads is declared, and there when it is read; its message is one line of words.

    An API server checks types when the CRD is installed, where the library used here reads any field of anything.
    """
    _program(rule["rule"])
    fields = re.findall(r"\bself\.(\w+)\b(?!\()", rule["rule"])
    for field in fields:
        assert field in schema["properties"], path
        there = field in schema.get("required", ()) or "default" in schema["properties"][field]
        assert there or f"has(self.{field})" in rule["rule"], f"{path}: {field} may be absent"
    for field in re.findall(r"\bv\.(\w+)", rule["rule"]):
        assert field in schema["items"]["required"], path
    assert rule["message"]
    assert "\n" not in rule["message"]
    if "oldSelf" in rule["rule"]:
        assert "[]" not in path, "elements of lists have no old selves"


def pick(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of *fields*."""
    return st.fixed_dictionaries({}, optional=fields)


def named(*names: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Lists of objects with these names, each once at most."""
    objects = st.sampled_from(names).map(lambda name: {"name": name})
    return st.lists(objects, max_size=3, unique_by=lambda value: value["name"])


PODS_OR_PERCENT = st.sampled_from([0, 1, "0%", "100%"])
ALL_METHODS = ("Auto", "DraftModel", "PromptLookup", "Off")
SPECS = pick(
    speculation=pick(method=st.sampled_from(ALL_METHODS), draft=st.just(DRAFT)),
    autoscaling=st.fixed_dictionaries({"maxReplicas": st.integers(1, 4)}, optional={"minReplicas": st.integers(1, 4)}),
    server=pick(
        maxNumSeqs=st.sampled_from([1, 63, 64, 2048, 4096]), maxNumBatchedTokens=st.sampled_from([1, 64, 2047])
    ),
    storage=pick(cache=pick(sizeLimit=st.just("1Gi"), claimName=st.just("claim"), size=st.just("2Gi"))),
    template=pick(
        volumes=named("models", "cache", "tmp", "policy", "api-key"),
        volumeMounts=st.sampled_from(["/models", "/etc/smartspec", "/etc//smartspec/api-key", "/etc/smartspecs"]).map(
            lambda path: [{"name": "models", "mountPath": path}]
        ),
        env=named("X", "SMARTSPEC_ADMIN_KEY", "SMARTSPEC_API_KEY"),
        rollout=pick(maxSurge=PODS_OR_PERCENT, maxUnavailable=PODS_OR_PERCENT),
    ),
)


SOURCES = st.sampled_from(["org/model", "org/other", "org/../model"])


@given(more=SPECS, source=SOURCES, running=st.sampled_from([None, "org/model"]))
def test_the_two_sides_never_differ(more: dict[str, Any], source: str, running: str | None) -> None:
    """Over all combinations of what the rules look at, both say the same of the same spec."""
    spec = {"model": {"source": source}, **more}
    old = None if running is None else {"model": {"source": running}}
    assert sorted(by_operator(spec, old)) == sorted(by_crd(spec, old))


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
