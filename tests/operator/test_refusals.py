"""What an API server says of a child, in terms of the SmartSpec: which field, and whether trying again may help."""

import pytest

from smartspec_operator.refusals import refusal_reason, spec_field


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (422, "is invalid", "InvalidSpec"),
        (400, "quantities must match the regular expression", "InvalidSpec"),
        (500, "failed to create typed patch object: .spec.x: field not declared in schema", "InvalidSpec"),
        (500, "etcdserver: request timed out", None),
        (403, "is forbidden: exceeded quota", "ApplyFailed"),
        (409, "the object has been modified", None),
        (429, "too many requests", None),
        (0, "connection refused", None),
    ],
)
def test_only_what_the_spec_is_to_blame_for_is_its_fault(status: int, message: str, reason: str | None) -> None:
    """A server in trouble must not turn a sound spec invalid."""
    assert refusal_reason(status, message) == reason


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("spec.template.spec.containers[0].resources.requests: Invalid value", "template.resources"),
        ('spec.template.spec.containers[0].volumeMounts[3].name: Not found: "x"', "template.volumeMounts"),
        ("spec.template.spec.containers[0].env[6].name: Invalid value", "template.env"),
        ("spec.template.spec.volumes[3].configMap: Forbidden", "template.volumes"),
        (".spec.template.spec.affinity.nodeAffinityy: field not declared in schema", "template.affinity"),
        ('.spec.template.spec.containers[name="smartspec"].volumeMounts: duplicate entries', "template.volumeMounts"),
        ("spec.template.annotations: Too long", "template.annotations"),
        ("unmarshalerDecoder: quantities must match the regular expression", "template.resources"),
    ],
)
def test_the_field_of_a_child_is_one_of_the_spec(message: str, field: str) -> None:
    """Whoever wrote the spec has never seen the Deployment."""
    assert spec_field(message) == f"spec.{field}: {message}"


def test_what_comes_from_no_field_is_left_as_it_is() -> None:
    """Better no field than a wrong one."""
    assert spec_field("deployments.apps is forbidden") == "deployments.apps is forbidden"
