"""Who may do what: the least that the operator and the test need, in each mode."""

from typing import Any

import pytest

from charts import NAMESPACE, Manifest, is_hook, kinds, one, render

MODES: dict[str, dict[str, Any]] = {"cluster": {}, "namespace": {"watchNamespace": "models"}}


def rules(manifest: Manifest) -> set[tuple[str, str, str]]:
    """Every (group, resource, verb) that a role gives without naming objects."""
    return {
        (group, resource, verb)
        for rule in manifest["rules"]
        if "resourceNames" not in rule
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_given_wholesale(mode: str) -> None:
    """No wildcard, no role over roles, no listing of Secrets, no deleting but of integrations, no writing of wishes."""
    for role in [m for m in render(MODES[mode]) if m["kind"] in ("Role", "ClusterRole")]:
        if "-edit" in role["metadata"]["name"] or "-try" in role["metadata"]["name"]:
            continue
        given = rules(role)
        assert not {part for rule in given for part in rule if part == "*"}
        assert not {rule for rule in given if rule[0] == "rbac.authorization.k8s.io"}
        assert not {rule for rule in given if rule[1] == "secrets" and rule[2] not in ("get", "create")}
        assert not {rule for rule in given if rule[1] == "pods" and rule[2] not in ("list", "patch")}
        assert {rule[1] for rule in given if rule[2] in ("delete", "deletecollection")} <= {
            "podmonitors",
            "inferencepools",
            "poddisruptionbudgets",
        }
        assert {rule[2] for rule in given if rule[1] == "smartspecs"} <= {"get", "list", "watch"}


def test_one_namespace_needs_no_cluster_role() -> None:
    """All that is bound is a Role in that namespace, to the account in the release's."""
    rendered = render(MODES["namespace"])
    assert "ClusterRoleBinding" not in kinds(rendered)
    binding = one([m for m in rendered if m["metadata"].get("namespace") == "models"], "RoleBinding", "-operator")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "smartspec-operator", "namespace": NAMESPACE}]
    assert binding["roleRef"]["kind"] == "Role"
    bare = kinds(render(MODES["namespace"] | {"crds": {"enabled": False}}))
    assert not {"ClusterRole", "CustomResourceDefinition"} & bare


SECRETS: list[tuple[dict[str, Any], set[str]]] = [
    ({"adminKeys": "generate"}, {"get", "create"}),
    ({"adminKeys": "read"}, {"get"}),
    ({"adminKeys": "named", "adminKeyNames": ["a"]}, {"get"}),
    ({"adminKeys": "named"}, set()),
]


@pytest.mark.parametrize(("rbac", "verbs"), SECRETS)
def test_secrets_are_read_as_far_as_was_said(rbac: dict[str, Any], verbs: set[str]) -> None:
    """From making keys for everyone down to no verb on Secrets at all."""
    role = one(render({"rbac": rbac, "watchNamespace": "models"}), "Role", "smartspec-operator")
    found = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
    assert {verb for rule in found for verb in rule["verbs"]} == verbs
    assert [rule.get("resourceNames") for rule in found] == [rbac.get("adminKeyNames")] * bool(verbs)


def test_users_of_a_namespace_are_users_of_its_smartspecs() -> None:
    """Viewers may look, editors may write; nobody but the operator writes the status."""
    rendered = render()
    view, edit = one(rendered, "ClusterRole", "-view"), one(rendered, "ClusterRole", "-edit")
    aggregate = "rbac.authorization.k8s.io/aggregate-to-"
    assert {label for label in view["metadata"]["labels"] if aggregate in label} == {
        f"{aggregate}view",
        f"{aggregate}edit",
        f"{aggregate}admin",
    }
    assert f"{aggregate}view" not in edit["metadata"]["labels"]
    assert {verb for _, _, verb in rules(view)} == {"get", "list", "watch"}
    assert not {rule for rule in rules(edit) if rule[1] == "smartspecs/status"}


@pytest.mark.parametrize("mode", MODES)
def test_the_test_may_touch_smartspecs_alone(mode: str) -> None:
    """Its pod runs under an account of its own, and nothing of it is there where it is not wanted."""
    rendered = render(MODES[mode])
    role, pod = one(rendered, "Role", "-try"), one(rendered, "Pod", "-try")
    assert rules(role) == {("smartspec.io", "smartspecs", verb) for verb in ("get", "create", "delete")}
    assert role["metadata"]["namespace"] == MODES[mode].get("watchNamespace", NAMESPACE)
    assert pod["spec"]["serviceAccountName"] == one(rendered, "ServiceAccount", "-try")["metadata"]["name"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert [manifest["metadata"]["name"] for manifest in rendered if is_hook(manifest)] == ["smartspec-operator-try"]
    without = render(MODES[mode] | {"test": {"enabled": False}})
    assert not [manifest for manifest in without if manifest["metadata"]["name"].endswith("-try")]
