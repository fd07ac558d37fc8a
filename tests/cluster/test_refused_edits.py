"""An edit that the API server lets through and then makes no pod of: what ran before is watched on, and told once."""

import json

import pytest

from control_plane import Kubelet, User, eventually, loopback

pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # the generated client's own sockets

WRONG = {"volumeMounts": [{"name": "absent", "mountPath": "/x"}]}


async def turned(user: User, kind: str, status: str, reason: str) -> None:
    """Wait until the condition says so."""

    async def holds() -> bool:
        found = await user.condition(kind)
        assert (found.get("status"), found.get("reason")) == (status, reason), found
        return True

    await eventually(holds)


async def test_replicas_that_die_under_a_refused_edit_are_told(user: User, kubelet: Kubelet) -> None:
    """`Available` and the counts follow the pods; the same refusal again is counted in the Event that stands."""
    await user.apply()
    (pod,) = await eventually(kubelet.pods)
    await kubelet.run(pod, loopback(2))
    await turned(user, "Ready", "True", "Serving")
    await user.apply(template=WRONG)
    await turned(user, "Ready", "False", "InvalidSpec")
    assert (await user.condition("Available"))["status"] == "True"
    await kubelet.run(pod, loopback(2), ready=False)
    await turned(user, "Available", "False", "NoReplicaReady")
    assert (await user.resource())["status"]["readyReplicas"] == 0
    await turned(user, "Ready", "False", "InvalidSpec")
    await user.apply(template={})

    async def taken() -> bool:
        return bool((await user.condition("Ready"))["reason"] != "InvalidSpec")

    await eventually(taken)
    await user.apply(template=WRONG)
    await turned(user, "Ready", "False", "InvalidSpec")

    async def counted() -> bool:
        listed = await user.kubectl("get", "events", "--field-selector", "reason=InvalidSpec", "-o", "json")
        assert [event["count"] for event in json.loads(listed)["items"]] == [2]
        return True

    await eventually(counted)
