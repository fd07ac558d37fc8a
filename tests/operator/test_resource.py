"""The custom resource: what the operator's types accept is what the schema in crds/ accepts, field by field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from smartspec_operator.reported import Status
from smartspec_operator.resource import InvalidSpecError, Spec, parse, previous_status

CRD = yaml.safe_load((Path(__file__).parents[2] / "crds/smartspec.io_smartspecs.yaml").read_text())
VERSION = CRD["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]
BOUNDS = {
    "minimum": "minimum", "maximum": "maximum", "minLength": "minLength", "maxLength": "maxLength", "enum": "enum",
    "pattern": "pattern",
}  # fmt: skip


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of the CRD's schema below *path*."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from fields(inner, f"{path}.{name}")
    if isinstance(inner := schema.get("items", schema.get("additionalProperties")), dict):
        yield from fields(inner, f"{path}[]")


def typed_fields(kind: type) -> dict[str, dict[str, Any]]:
    """Every field of a type of the operator, by path, with its JSON schema."""
    (root,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")

    def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        found = dict(schema)
        for choice in schema.get("anyOf", ()):  # a number or a text has the bounds of both
            found |= choice if choice.get("type") != "null" else {}
        if "$ref" in found:
            found = {**definitions[found["$ref"].rpartition("/")[2]], **{k: v for k, v in found.items() if k != "$ref"}}
        yield path, found
        for name, inner in found.get("properties", {}).items():
            yield from walk(inner, f"{path}.{name}")
        if "properties" in (items := definitions.get(found.get("items", {}).get("$ref", "").rpartition("/")[2], {})):
            yield from walk(items, f"{path}[]")

    return dict(walk(root, ""))


def crd_fields(part: str) -> dict[str, dict[str, Any]]:
    """Every field of the CRD's spec or status by path, without what is passed through to pods unread."""
    found = dict(fields(SCHEMA["properties"][part], ""))
    passed = tuple(
        f".template.{name}"
        for name in ("imagePullSecrets", "resources", "nodeSelector", "tolerations", "affinity", "env", "volumes",
                     "volumeMounts", "annotations")
    )  # fmt: skip
    passed += (".integrations.podMonitor.labels",)
    return {path: s for path, s in found.items() if not any(path.startswith(p) and path != p for p in passed)}


@pytest.mark.parametrize(("part", "kind"), [("spec", Spec), ("status", Status)])
def test_types_and_schema_have_the_same_fields(part: str, kind: type) -> None:
    """No field exists on one side only."""
    assert set(typed_fields(kind)) == set(crd_fields(part))


def test_types_and_schema_have_the_same_bounds_and_defaults() -> None:
    """What one refuses the other refuses, and what one fills in the other fills in."""
    typed, crd = typed_fields(Spec), crd_fields("spec")
    for path, schema in crd.items():
        mine = typed[path]
        for name in BOUNDS:
            theirs = schema.get(name)
            if name == "minimum" and schema.get("exclusiveMinimum"):
                assert mine.get("exclusiveMinimum") == theirs, path
            elif name == "enum" and theirs:
                assert sorted(mine["enum"]) == sorted(theirs), path
            else:
                assert mine.get(name) == theirs, (path, name)
        if "default" in schema and schema["default"] != {}:
            assert mine["default"] == schema["default"], path
        assert sorted(schema.get("required", [])) == sorted(mine.get("required", [])), path


@pytest.mark.parametrize("path", [path for path, _ in fields(SCHEMA, "") if not path.startswith(".metadata")])
def test_every_field_is_described(path: str) -> None:
    """`kubectl explain` is the manual."""
    description = dict(fields(SCHEMA, ""))[path].get("description", "")
    assert len(description) > 8
    assert description.endswith(".")


def test_columns_read_fields_that_exist() -> None:
    """A column whose path is misspelled would stay empty for ever."""
    known = {f".{part}{path}" for part in ("spec", "status") for path in crd_fields(part)}
    for column in VERSION["additionalPrinterColumns"]:
        path = column["jsonPath"].split("[")[0]
        assert path in known | {".metadata.creationTimestamp"}, column["name"]


MINIMAL = {"model": {"source": "org/model"}}
INVALID = {
    "spec: object missing required field `model`": {},
    "spec.model: object missing required field `source`": {"model": {}},
    "spec.model.source: expected `str`": {"model": {"source": 3}},
    "spec.model.dtype: invalid enum value 'int3'": {"model": {"source": "m", "dtype": "int3"}},
    "spec.speculation.maxTokens: expected `int` <= 32": {**MINIMAL, "speculation": {"maxTokens": 33}},
    "spec.slo.tpotSeconds: expected `float` > 0.0": {**MINIMAL, "slo": {"tpotSeconds": 0}},
    "spec.slo.percentile: expected `int` <= 99": {**MINIMAL, "slo": {"percentile": 100}},
    "spec.replicas: expected `int` >= 0": {**MINIMAL, "replicas": -1},
    "spec.autoscaling: object missing required field `maxReplicas`": {**MINIMAL, "autoscaling": {}},
    "spec.server.apiKeySecretRef: object missing required field `key`": {
        **MINIMAL, "server": {"apiKeySecretRef": {"name": "x"}},
    },
    "spec: object contains unknown field `modle`": {**MINIMAL, "modle": {}},
}  # fmt: skip


@pytest.mark.parametrize("message", INVALID)
def test_an_invalid_field_is_named(message: str) -> None:
    """Whoever wrote it reads which field, and what would be accepted; the CRD's schema refuses it as well."""
    spec = INVALID[message]
    with pytest.raises(InvalidSpecError) as caught:
        parse({"metadata": {"name": "x"}, "spec": spec})
    assert str(caught.value).startswith(message)
    if "unknown" not in message:  # the API server prunes those instead
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spec, SCHEMA["properties"]["spec"], cls=jsonschema.Draft4Validator)


def test_a_status_of_another_version_is_no_obstacle() -> None:
    """Unknown fields are ignored, and what cannot be read is started anew."""
    assert previous_status({"status": {"replicas": 2, "novel": 1}}).replicas == 2
    assert previous_status({"status": {"replicas": "two"}}) == Status()
    assert previous_status({}) == Status()


def test_the_served_name_is_the_last_part_of_the_source() -> None:
    """As the runtime would name it itself."""
    resource = parse({"metadata": {"name": "x"}, "spec": {"model": {"source": "/models/org/llama/"}}})
    assert resource.served_name == "llama"
