"""The CRD in the chart: the one source, with CEL rules only where the API server knows them."""

from collections.abc import Iterator
from typing import Any

import yaml

from charts import CHART, NEW, OLD, ROOT, kinds, one, render

SOURCE: dict[str, Any] = yaml.safe_load((ROOT / "crds/smartspec.io_smartspecs.yaml").read_text())
RULES = "x-kubernetes-validations"


def without_rules(schema: Any) -> Any:
    """*schema* less its CEL rules, at every depth."""
    if isinstance(schema, dict):
        return {key: without_rules(value) for key, value in schema.items() if key != RULES}
    return [without_rules(value) for value in schema] if isinstance(schema, list) else schema


def rules(schema: Any) -> Iterator[dict[str, str]]:
    """Every CEL rule of *schema*."""
    if isinstance(schema, dict):
        yield from schema.get(RULES, ())
        for value in schema.values():
            yield from rules(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from rules(value)


def test_it_is_the_one_in_crds() -> None:
    """There is no copy to forget: one is a link to the other. The rendered spec equals it, every rule of it."""
    assert (ROOT / "crds/smartspec.io_smartspecs.yaml").resolve() == CHART / "files/smartspec.io_smartspecs.yaml"
    crd = one(render(kubernetes=NEW), "CustomResourceDefinition")
    assert (crd["metadata"]["name"], crd["spec"]) == (SOURCE["metadata"]["name"], SOURCE["spec"])
    assert len(list(rules(crd))) >= 8


def test_old_servers_get_it_without_rules() -> None:
    """Before 1.25 helm and kubectl refuse a CRD with CEL; nothing else is missing there."""
    for kubernetes in (OLD, "1.24.17"):
        crd = one(render(kubernetes=kubernetes), "CustomResourceDefinition")
        assert list(rules(crd)) == []
        assert crd["spec"] == without_rules(SOURCE["spec"])


def test_servers_of_clouds_have_rules_too() -> None:
    """Versions with a vendor's suffix are compared by what they are."""
    for kubernetes in ("1.25.0", "1.29.3-gke.1282000", "1.31.2-eks-7f9249a"):
        assert len(list(rules(one(render(kubernetes=kubernetes), "CustomResourceDefinition")))) >= 8


def test_an_uninstall_keeps_it() -> None:
    """Deleting a CRD deletes every resource of it."""
    metadata = one(render(), "CustomResourceDefinition")["metadata"]
    assert metadata["annotations"]["helm.sh/resource-policy"] == "keep"


def test_it_can_be_left_out() -> None:
    """Where it is installed by others, neither it nor the roles that go with it are rendered."""
    found = kinds(render({"crds": {"enabled": False}}))
    assert "CustomResourceDefinition" not in found
    assert found >= {"Deployment", "ClusterRole"}
