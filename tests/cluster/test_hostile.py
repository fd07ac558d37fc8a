"""Every invalid and hostile SmartSpec of the table, all at once, on a real API server: refused or told, never built."""

import asyncio
from typing import Any

import pytest

from control_plane import Kubelet, Operator, User, eventually
from smartspec_operator.kube import ApiError
from smartspec_operator.resource import Manifest
from spec_cases import Case, of

pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # the generated client's own sockets


async def submitted(user: User, case: Case, name: str) -> str | None:
    """What the API server says when it refuses the case at once; None where it takes it."""
    metadata = {"name": case.called if case.says == "metadata.name" else name, "namespace": user.namespace}
    try:
        await user.api.create({**case.body, "metadata": metadata})
    except ApiError as error:
        return str(error)
    return None


async def ready_condition(user: User, name: str) -> Manifest:
    """The resource's `Ready`, once there is one."""
    resource = await user.api.get("SmartSpec", user.namespace, name)
    assert resource is not None
    conditions = resource.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == "Ready"), {})


async def built(user: User) -> set[str]:
    """The names of all that was made of resources in the namespace."""
    found: set[str] = set()
    for kind in ("Deployment", "Service", "ConfigMap", "Secret", "PersistentVolumeClaim"):
        live = await user.api.list(kind, user.namespace, "app.kubernetes.io/managed-by=smartspec-operator")
        found |= {str(one["metadata"]["labels"]["app.kubernetes.io/instance"]) for one in live}
    return found


async def test_no_invalid_spec_is_carried_out_and_others_are_served(user: User, kubelet: Kubelet) -> None:
    """At least 25 of them at once: each refused or reported with its field, nothing half-built, a bystander served."""
    cases = of("schema", "rule", "operator", "child")
    assert len(cases) >= 25
    names = [f"case-{i}" for i in range(len(cases))]
    answers = await asyncio.gather(*(submitted(user, case, name) for case, name in zip(cases, names, strict=True)))
    await user.apply()  # the bystander, made after all of them
    for case, name, answer in zip(cases, names, answers, strict=True):
        if answer is not None:
            assert case.says.rpartition(".")[2] in answer, (case.name, answer)
            continue
        assert case.judge != "schema", f"{case.name}: the API server took it"

        async def reported(case: Case = case, name: str = name) -> bool:
            ready = await ready_condition(user, name)
            assert (ready.get("status"), ready.get("reason")) == ("False", "InvalidSpec"), (case.name, ready)
            assert f"{case.says}: " in ready["message"], (case.name, ready)
            return True

        await eventually(reported)

    async def served() -> bool:
        return bool(await kubelet.pods())

    await eventually(served)
    assert await built(user) == {"demo"}
    refused = sum(answer is not None for answer in answers)
    print(f"{len(cases)} specs: {refused} refused by the API server, {len(cases) - refused} reported")


async def test_what_is_refused_is_not_tried_every_tick(user: User, operator: Operator) -> None:
    """33 ticks later it was tried at most three times more; an edit that mends it is carried out at once."""

    async def tries() -> float:
        found = await operator.metrics()
        return sum(n for name, n in found.items() if "reconciles_total" in name and "result=InvalidSpec" in name)

    async def told() -> bool:
        return bool((await user.condition("Ready")).get("reason") == "InvalidSpec")

    async def alone() -> bool:  # what other tests left behind is refused, too
        return len(await user.api.list("SmartSpec", None)) == 1

    await user.apply(template={"volumeMounts": [{"name": "absent", "mountPath": "/x"}]})
    await eventually(told)
    await eventually(alone, seconds=60)
    before = await tries()
    await asyncio.sleep(10)
    assert await tries() - before <= 3
    await user.apply(template={})

    async def made() -> bool:
        return await user.api.get("Deployment", user.namespace, "demo") is not None

    await eventually(made, seconds=2)


WAITING: dict[str, dict[str, str]] = {
    "spec.template.image": {"reason": "ErrImagePull", "message": "no such host"},
    "spec.server.apiKeySecretRef": {"reason": "ContainerCreating"},  # the rest stands in its Events
}
"""What kubelet says of the cases that only it can judge."""


@pytest.mark.parametrize("case", of("pod"), ids=lambda case: case.name)
async def test_what_only_pods_show_names_its_field(user: User, kubelet: Kubelet, case: Case) -> None:
    """Ready is False for the pod's own reason, with the field of the spec in its message."""
    await user.apply(**case.spec)
    waiting = WAITING.get(case.says)

    async def pods() -> list[Manifest]:
        return await kubelet.pods()

    async def told() -> bool:
        for pod in [] if waiting is None else await eventually(pods):
            container: dict[str, Any] = {
                "name": "smartspec", "image": "x", "imageID": "x", "ready": False, "restartCount": 0,
                "state": {"waiting": waiting},
            }  # fmt: skip
            placed = {"type": "PodScheduled", "status": "True"}  # the scheduler has no node, and keeps saying otherwise
            status = {"status": {"containerStatuses": [container], "conditions": [placed]}}
            await user.api.patch("Pod", user.namespace, pod["metadata"]["name"], status, "status")
        ready = await user.condition("Ready")
        assert ready.get("status") == "False"
        assert f"{case.says}: " in ready["message"], ready
        return True

    await eventually(told)
