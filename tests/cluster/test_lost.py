"""What is lost on the way, on a real API server: a pod that its node evicts, and a status that was never written."""

import asyncio

import pytest

from control_plane import Kubelet, User, admin_port, eventually, loopback
from fleets import load
from smartspec_operator.resource import Manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # the generated client's own sockets


async def pods(kubelet: Kubelet, count: int) -> list[Manifest]:
    """The pods, once there are *count*."""

    async def made() -> list[Manifest] | None:
        found = await kubelet.pods()
        return found if len(found) == count else None

    found: list[Manifest] = await eventually(made)
    return found


async def test_an_evicted_pod_is_replaced_and_counts_no_more(user: User, kubelet: Kubelet) -> None:
    """Its ReplicaSet leaves it lying beside the new one; it is not asked, and no word of it is left."""
    await user.apply()
    (pod,) = await pods(kubelet, 1)
    async with (
        admin_port(loopback(2), load(), await user.admin_key()) as old,
        admin_port(loopback(3), load(), await user.admin_key()),
    ):
        await kubelet.run(pod, loopback(2))

        async def asked() -> bool:
            return old.requests > 0

        await eventually(asked)
        evicted = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
        await user.api.patch("Pod", user.namespace, pod["metadata"]["name"], {"status": evicted}, "status")
        (other,) = [made for made in await pods(kubelet, 2) if made["metadata"]["name"] != pod["metadata"]["name"]]
        await kubelet.run(other, loopback(3))

        async def counted() -> bool:
            status = (await user.resource())["status"]
            return (status["replicas"], status["readyReplicas"]) == (1, 1)

        await eventually(counted)
        before = old.requests
        await asyncio.sleep(2.5)  # a tick
        assert old.requests == before
        assert "memory" not in (await user.condition("Degraded"))["message"]


async def test_a_decision_that_the_status_lost_comes_back(user: User, kubelet: Kubelet) -> None:
    """It was written with the number of replicas, into the Deployment, and known as ours by who manages it."""
    await user.apply()
    await user.kubectl("scale", "smartspec", "demo", "--replicas=2")
    await pods(kubelet, 2)

    async def history() -> list[Manifest] | None:
        found: list[Manifest] | None = (await user.resource()).get("status", {}).get("scalingHistory")
        return found

    recorded = await eventually(history)
    assert [record["toReplicas"] for record in recorded] == [2]
    await user.api.patch("SmartSpec", user.namespace, "demo", {"status": {"scalingHistory": None}}, "status")
    assert await eventually(history) == recorded
