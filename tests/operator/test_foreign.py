"""What is told of others' hands in a child: what is theirs to put there, what is not, and how that is named."""

from typing import Any

import pytest

from smartspec_operator.foreign import changes, has_more, is_ours, shown, strays, without

WISH: dict[str, Any] = {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}], "args": ["x"]}}


@pytest.mark.parametrize(
    ("live", "more"),
    [
        (WISH, False),
        ({"spec": {**WISH["spec"], "status": {"list": [1, 2]}}, "metadata": {"managedFields": [1]}}, False),
        ({"spec": {**WISH["spec"], "args": ["x", "y"]}}, True),
        ({"spec": {**WISH["spec"], "containers": [*WISH["spec"]["containers"], {"name": "b"}]}}, True),
        ({"spec": {"containers": [{"name": "a", "env": [{"name": "X"}, {"name": "Y"}]}]}}, True),
        ({"spec": {"containers": [{"name": "a", "ports": [1, 2], "env": [{"name": "X"}]}]}}, False),
        ({}, False),
    ],
)
def test_only_lists_of_ours_can_have_more(live: dict[str, Any], more: bool) -> None:
    """Fields that we do not name are the server's, or other people's, and left alone."""
    assert has_more(live, WISH) is more


def service(*entries: tuple[str, str, dict[str, Any]], **selector: str) -> dict[str, Any]:
    """A live Service with *selector*, and who manages what of its spec."""
    managed = [
        {"manager": manager, "operation": operation, "fieldsV1": {"f:spec": fields}}
        for manager, operation, fields in entries
    ]
    spec = {"selector": selector, "sessionAffinity": "None", "ports": [{"port": 80}, {"port": 81}]}
    return {"kind": "Service", "metadata": {"name": "demo", "managedFields": managed}, "spec": spec}


OURS = ("smartspec-operator", "Apply", {"f:selector": {"f:name": {}, "f:old": {}}})
SERVICE: dict[str, Any] = {
    "kind": "Service",
    "metadata": {"name": "demo"},
    "spec": {"selector": {"name": "x"}, "ports": [{"port": 80}]},
}


def test_only_what_others_manage_in_what_is_ours_is_taken_out() -> None:
    """A key of a selector and a port; not an affinity, a default (nobody's), or a key that is gone."""
    theirs = {
        "f:selector": {".": {}, "f:app": {}, "f:name": {}, "f:gone": {}},
        "f:sessionAffinity": {},
        "f:ports": {'k:{"port":81}': {"f:port": {}}, 'k:{"port":80}': {"f:port": {}}},
    }
    live = service(OURS, ("kubectl-patch", "Update", theirs), name="x", app="evil", default="y", old="z")
    found = strays(live, SERVICE)
    assert found == [("spec", "selector", "app"), ("spec", "ports", "[81]")]
    patch = without(SERVICE, found)
    assert patch["spec"] == {"selector": {"name": "x", "app": None}, "ports": [{"port": 80}]}
    assert "app" not in SERVICE["spec"]["selector"]


def test_what_we_put_in_ourselves_by_a_patch_is_no_less_a_stray() -> None:
    """Else an apply that does not name it any more would leave it."""
    live = service(("smartspec-operator", "Update", {"f:selector": {"f:app": {}}}), name="x", app="y")
    assert strays(live, SERVICE) == [("spec", "selector", "app")]
    assert strays(service(OURS, name="x", old="z"), SERVICE) == []


def test_an_annotation_of_the_template_stays() -> None:
    """`kubectl rollout restart` writes one; a label beside it goes."""
    fields = {"f:spec": {"f:template": {"f:metadata": {"f:annotations": {"f:at": {}}, "f:labels": {"f:zz": {}}}}}}
    entry = {"manager": "kubectl", "operation": "Update", "fieldsV1": fields}
    template = {"metadata": {"annotations": {"at": "1"}, "labels": {"zz": "1"}}}
    live = {"metadata": {"managedFields": [entry]}, "spec": {"template": template}}
    wish = {"kind": "Deployment", "metadata": {}, "spec": {"template": {"metadata": {"labels": {}}}}}
    assert strays(live, wish) == [("spec", "template", "metadata", "labels", "zz")]


def test_a_value_is_ours_until_somebody_else_writes_it() -> None:
    """And where nobody is said to manage anything."""
    path = ("spec", "selector", "name")
    assert is_ours(service(OURS, name="x"), path)
    assert is_ours(service(name="x"), path)
    assert not is_ours(service(("kubectl", "Update", {"f:selector": {"f:name": {}}}), name="x"), path)


def test_changes_are_named_by_path_and_not_by_value() -> None:
    """Items of lists by their names; the status and what the server counts are nobody's."""
    before: dict[str, Any] = {
        "metadata": {"resourceVersion": "1", "labels": {"a.b/c": "1"}},
        "spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b"}], "args": ["x"], "same": [1]},
    }
    after: dict[str, Any] = {
        "metadata": {"resourceVersion": "2", "labels": {}},
        "spec": {"containers": [{"name": "a", "image": "y"}], "args": ["y"], "same": [1]},
        "status": {"x": 1},
    }
    found = changes(before, after)
    assert found == {"metadata.labels[a.b/c]", "spec.containers[a].image", "spec.containers[b]", "spec.args"}
    assert shown(found) == "metadata.labels[a.b/c], spec.args, spec.containers[a].image and 1 more"
    assert shown(frozenset({"x"})) == "x"
