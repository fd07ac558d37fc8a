"""Kinds that only some clusters know: told where missing, made where they are there, gone when not asked for."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from control_plane import Kubelet, Operator, User, eventually

pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # the generated client's own sockets

ASKED = {"podMonitor": {"labels": {"release": "prometheus"}}, "inferencePool": {"endpointPicker": "picker"}}
KINDS = {
    "podmonitors.monitoring.coreos.com": "PodMonitor",
    "inferencepools.inference.networking.k8s.io": "InferencePool",
}


def definition(name: str, kind: str) -> dict[str, Any]:
    """A CRD of the kind that takes anything."""
    plural, _, group = name.partition(".")
    anything = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": name,
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": anything}],
        },
    }


@pytest.fixture
def install(kubectl: Callable[..., str]) -> Iterator[Callable[[], None]]:
    """Installs both kinds; they are removed afterwards. Skips where the cluster has them already."""
    there = kubectl("get", "crd", "-o", "name")
    if any(name in there for name in KINDS):
        pytest.skip("this cluster has these kinds already, and they are not ours to remove")

    def make() -> None:
        for name, kind in KINDS.items():
            kubectl("apply", "-f", "-", stdin=json.dumps(definition(name, kind)))
        kubectl("wait", "--for=condition=Established", *(f"crd/{name}" for name in KINDS), "--timeout=20s")

    yield make
    kubectl("delete", "crd", "--ignore-not-found", *KINDS)


async def test_integrations_follow_the_spec_and_the_cluster(
    user: User, kubelet: Kubelet, operator: Operator, install: Callable[[], None]
) -> None:
    """Missing kinds are a condition; once there, both are made with their owner, and go when no longer asked for."""
    await user.apply(integrations=ASKED)

    async def missing() -> bool:
        condition = await user.condition("Integrated")
        assert (condition.get("status"), condition.get("reason")) == ("False", "KindMissing"), condition
        return True

    await eventually(missing)
    assert await eventually(kubelet.pods), "all else is served"
    install()
    operator.stop()  # it would find out by itself within a minute
    operator.start()

    async def made() -> bool:
        monitor, pool = await user.get("PodMonitor"), await user.get("InferencePool")
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        assert pool["spec"]["endpointPickerRef"] == {"name": "picker", "port": {"number": 9002}}
        assert (await user.condition("Integrated"))["status"] == "True"
        return True

    await eventually(made)
    template = (await user.get("Deployment"))["spec"]["template"]
    assert template["metadata"]["labels"]["inference.networking.k8s.io/engine-type"] == "smartspec"
    await user.apply()

    async def gone() -> bool:
        left = [await user.api.get(kind, user.namespace, "demo") for kind in KINDS.values()]
        return left == [None, None] and await user.condition("Integrated") == {}

    await eventually(gone)


BUDGET = "PodDisruptionBudget"


async def test_a_budget_comes_and_goes_with_the_second_replica(user: User, kubelet: Kubelet) -> None:
    """In the version of the API that the cluster has. Edits are undone, one that would contradict ours too."""
    assert await user.api.knows(BUDGET)
    await user.apply(replicas=2)

    async def ours() -> bool:
        budget = await user.get(BUDGET)
        assert budget["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in budget["spec"]
        assert (
            budget["spec"]["selector"]["matchLabels"]
            == (await user.get("Deployment"))["spec"]["selector"]["matchLabels"]
        )
        (owner,) = budget["metadata"]["ownerReferences"]
        return bool(owner["kind"] == "SmartSpec")

    await eventually(ours)

    async def counted() -> bool:  # the cluster's own controller finds the pods, and how many of them there shall be
        return bool((await user.get(BUDGET))["status"].get("expectedPods") == 2)

    await eventually(counted)
    for edit in ({"maxUnavailable": 2}, {"maxUnavailable": None, "minAvailable": 2}):
        await user.kubectl("patch", "pdb", "demo", "--type=merge", "-p", json.dumps({"spec": edit}))
        await eventually(ours)
    await user.kubectl("delete", "pdb", "demo")
    await eventually(ours)
    version = (await user.get(BUDGET))["metadata"]["resourceVersion"]
    await asyncio.sleep(2)
    assert (await user.get(BUDGET))["metadata"]["resourceVersion"] == version, "at rest nothing is written"
    await user.apply(replicas=1)

    async def gone() -> bool:
        return await user.api.get(BUDGET, user.namespace, "demo") is None

    await eventually(gone)
