"""The operator as a process against a real API server: from apply to delete, through edits, drift and its own death."""

import asyncio
import json
from typing import Any

import pytest

from control_plane import AdminPort, Kubelet, Operator, User, admin_port, eventually, loopback
from fleets import histogram, linear_priors, load
from smartspec_operator.resource import Manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # the generated client's own sockets


async def deployed(user: User, kubelet: Kubelet, count: int = 1) -> list[Manifest]:
    """The pods that the controllers made, once there are *count*."""

    async def made() -> list[Manifest] | None:
        pods = await kubelet.pods()
        return pods if len(pods) == count else None

    return sorted(await eventually(made), key=lambda pod: str(pod["metadata"]["name"]))


async def is_condition(user: User, kind: str, status: str, reason: str) -> Manifest:
    """A condition, once it has this status and reason."""

    async def said() -> Manifest | None:
        condition = await user.condition(kind)
        assert (condition.get("status"), condition.get("reason")) == (status, reason), condition
        return condition

    found: Manifest = await eventually(said)
    return found


async def versions(user: User) -> dict[str, str]:
    """The resource version of everything in the namespace that the operator writes."""
    found = {}
    for kind in ("SmartSpec", "Deployment", "Service", "ConfigMap", "Secret", "Pod"):
        for live in await user.api.list(kind, user.namespace):
            found[f"{kind}/{live['metadata']['name']}"] = live["metadata"]["resourceVersion"]
    return found


async def children(user: User) -> dict[str, str]:
    """The specs of all that was made of the resource, as text: their status moves by itself."""
    kinds = (("Deployment", "demo"), ("Service", "demo"), ("ConfigMap", "demo-policy"), ("Secret", "demo-admin-key"))
    found = [await user.get(kind, name) for kind, name in kinds]
    return {
        live["kind"]: str((live.get("spec"), live.get("data"), live["metadata"].get("annotations"))) for live in found
    }


async def observed(user: User) -> bool:
    """Whether the status is about the latest generation."""
    resource = await user.resource()
    return bool(resource.get("status", {}).get("observedGeneration") == resource["metadata"]["generation"])


async def test_a_served_resource_reports_its_load_and_takes_its_policy(user: User, kubelet: Kubelet) -> None:
    """Ready, metrics, applied policy, objectives and load stand in the status; the policy was pushed under the key."""
    await user.apply(slo={"tpotSeconds": 0.05})
    (pod,) = await deployed(user, kubelet)
    report = load(tokens_per_second=200.0, tpot=histogram(*[0.02] * 50), num_requests_running=3)
    async with admin_port(loopback(2), report, await user.admin_key()) as port:
        await kubelet.run(pod, loopback(2))
        await is_condition(user, "PolicyApplied", "True", "Applied")
        await is_condition(user, "Ready", "True", "Serving")
        await is_condition(user, "SLOMet", "True", "Attained")
        status = (await user.resource())["status"]
        assert status["load"]["tokensPerSecond"] == 200.0
        assert status["readyReplicas"] == status["replicas"] == 1
        assert status["url"] == f"http://demo.{user.namespace}.svc/v1"
        assert port.settings.tpot_target_seconds == status["policy"]["tpotTargetSeconds"] == 0.05


async def test_at_rest_nothing_is_written(user: User, kubelet: Kubelet, operator: Operator) -> None:
    """Over many ticks no object changes, and a restarted operator that applies everything anew changes none either."""
    await user.apply(autoscaling={"maxReplicas": 3}, template={"resources": {"limits": {"cpu": "1000m"}}})
    (pod,) = await deployed(user, kubelet)
    async with admin_port(loopback(2), load(priors=linear_priors()), await user.admin_key()):
        await kubelet.run(pod, loopback(2))
        await is_condition(user, "PolicyApplied", "True", "Applied")
        await is_condition(user, "Progressing", "False", "Complete")
        await asyncio.sleep(1)
        before = await versions(user)
        await asyncio.sleep(3)
        assert await versions(user) == before
        operator.kill()
        operator.start()
        await asyncio.sleep(4)
        assert await versions(user) == before


async def test_an_edit_rolls_through(user: User, kubelet: Kubelet) -> None:
    """A new revision of the pods comes up beside the old one, which goes when the new one is ready."""
    await user.apply()
    (old,) = await deployed(user, kubelet)
    async with admin_port(loopback(2), load(), await user.admin_key()):
        await kubelet.run(old, loopback(2))
        await is_condition(user, "Ready", "True", "Serving")
        await user.apply(speculation={"maxTokens": 3}, template={"image": "runtime:2"})
        both = await deployed(user, kubelet, 2)
        progress = await is_condition(user, "Progressing", "True", "WaitsForRoom")  # this cluster has not one node
        assert "spec.template.rollout with maxSurge 0" in progress["message"]
        (new,) = [pod for pod in both if pod["metadata"]["name"] != old["metadata"]["name"]]
        container = new["spec"]["containers"][0]
        assert container["image"] == "runtime:2"
        assert "--num-speculative-tokens 3" in " ".join(container["args"])
        async with admin_port(loopback(3), load(), await user.admin_key()) as port:
            await kubelet.run(new, loopback(3))
            assert [pod["metadata"]["name"] for pod in await deployed(user, kubelet)] == [new["metadata"]["name"]]
            await is_condition(user, "Progressing", "False", "Complete")
            assert port.settings.max_speculative_tokens == 3
            assert not port.is_draining


BROKEN: dict[str, dict[str, Any]] = {
    "spec.speculation.draft: is required by method DraftModel": {"speculation": {"method": "DraftModel"}},
    "spec.model.source: is immutable; make another SmartSpec for another model": {"model": {"source": "org/other"}},
}


@pytest.mark.parametrize("message", BROKEN)
async def test_an_invalid_edit_changes_nothing_that_runs(user: User, kubelet: Kubelet, message: str) -> None:
    """The resource says which field is wrong, its children stay as they were, and mending it mends all."""
    await user.apply()
    await deployed(user, kubelet)
    await eventually(lambda: observed(user))
    before = await children(user)
    await user.apply(**BROKEN[message], replicas=4)
    condition = await is_condition(user, "Ready", "False", "InvalidSpec")
    assert condition["message"] == message
    await asyncio.sleep(1)
    assert await children(user) == before
    await user.apply(replicas=2)
    await deployed(user, kubelet, 2)


async def test_what_others_own_is_left_alone(user: User, kubelet: Kubelet) -> None:
    """A Service of the same name is a conflict that is told, not something to take over."""
    await user.kubectl("create", "service", "clusterip", "demo", "--tcp=80:80")
    before = (await user.get("Service"))["metadata"]["resourceVersion"]
    await user.apply()
    condition = await is_condition(user, "Ready", "False", "Conflict")
    assert "Service demo exists" in condition["message"]
    assert (await user.get("Service"))["metadata"]["resourceVersion"] == before
    await user.kubectl("delete", "service", "demo")
    await deployed(user, kubelet)


async def test_a_failing_pod_speaks_through_the_resource(user: User, kubelet: Kubelet) -> None:
    """The container's last words are the resource's, and an Event tells them."""
    await user.apply()
    (pod,) = await deployed(user, kubelet)
    await kubelet.fail(pod, "CrashLoopBackOff", "error: no weights in org/model")
    condition = await is_condition(user, "Degraded", "True", "CrashLoopBackOff")
    assert "no weights in org/model" in condition["message"]
    await is_condition(user, "Ready", "False", "CrashLoopBackOff")
    events = await user.kubectl("get", "events", "--field-selector", "involvedObject.kind=SmartSpec")
    assert "no weights in org/model" in events


async def test_scaling_down_drains_first(user: User, kubelet: Kubelet) -> None:
    """kubectl scale to fewer: the least busy replica drains and answers while it stays, and it is the one that goes."""
    await user.apply()
    await deployed(user, kubelet)
    await user.kubectl("scale", "smartspec", "demo", "--replicas=2")
    idle, busy = await deployed(user, kubelet, 2)
    key = await user.admin_key()
    async with (
        admin_port(loopback(2), load(num_requests_running=1), key) as at_idle,
        admin_port(loopback(3), load(num_requests_running=4), key) as at_busy,
    ):
        await kubelet.run(idle, loopback(2))
        await kubelet.run(busy, loopback(3))
        await is_condition(user, "PolicyApplied", "True", "Applied")
        await user.kubectl("scale", "smartspec", "demo", "--replicas=1")

        async def drains() -> bool:
            return at_idle.is_draining

        await eventually(drains)
        await asyncio.sleep(1)
        assert (await user.get("Deployment"))["spec"]["replicas"] == 2, "lowered before the victim was unready"
        await kubelet.run(idle, loopback(2), ready=False)
        await asyncio.sleep(2.5)  # a tick
        assert (await user.get("Deployment"))["spec"]["replicas"] == 2, "lowered before the victim had answered"
        at_idle.report = load(state="draining")
        (left,) = await deployed(user, kubelet)
        assert left["metadata"]["name"] == busy["metadata"]["name"]
        assert not at_busy.is_draining
        record = (await user.resource())["status"]["scalingHistory"][-1]
        assert (record["fromReplicas"], record["toReplicas"], record["reason"]) == (2, 1, "SpecReplicas")


async def test_demand_adds_a_replica_that_is_handed_what_the_fleet_learned(user: User, kubelet: Kubelet) -> None:
    """A loaded fleet grows, says why, and keeps its priors where the next replica reads them."""
    await user.apply(autoscaling={"maxReplicas": 2})
    (pod,) = await deployed(user, kubelet)
    report = load(tokens_per_second=900.0, requests_per_second=14.0, priors=linear_priors())
    async with admin_port(loopback(2), report, await user.admin_key()):
        await kubelet.run(pod, loopback(2))
        await deployed(user, kubelet, 2)

        async def recorded() -> Manifest | None:
            history = (await user.resource())["status"].get("scalingHistory")
            return history[-1] if history else None

        record = await eventually(recorded)
        assert (record["reason"], record["toReplicas"]) == ("Demand", 2)
        assert "cpu/float32/demo" in (await user.get("ConfigMap", "demo-policy"))["data"]["policy.json"]
        await is_condition(user, "ScalingActive", "True", "Autoscaling")


async def test_one_silent_replica_does_not_silence_the_others(user: User, kubelet: Kubelet) -> None:
    """A replica that does not answer is told; the other is read and tuned as ever."""
    await user.apply(replicas=2)
    one, other = await deployed(user, kubelet, 2)
    async with admin_port(loopback(2), load(tokens_per_second=50.0), await user.admin_key()) as port:
        await kubelet.run(one, loopback(2))
        await kubelet.run(other, loopback(9))
        condition = await is_condition(user, "MetricsAvailable", "False", "SomeReplicasSilent")
        assert other["metadata"]["name"] in condition["message"]
        await is_condition(user, "Ready", "True", "Serving")

        async def tuned() -> bool:
            return port.settings.generation > 0

        await eventually(tuned)


async def test_a_killed_operator_resumes(user: User, kubelet: Kubelet, operator: Operator) -> None:
    """What was asked for while it was dead is done when it is back, under the numbers it had reached."""
    await user.apply(slo={"tpotSeconds": 0.05})
    await deployed(user, kubelet)
    operator.kill()
    await user.apply(slo={"tpotSeconds": 0.04}, replicas=2)
    operator.start()
    await deployed(user, kubelet, 2)

    async def numbered() -> bool:
        policy = (await user.resource())["status"]["policy"]
        return (policy["generation"], policy["tpotTargetSeconds"]) == (2, 0.04)

    await eventually(numbered)


async def test_kubectl_shows_scales_and_explains(user: User, kubelet: Kubelet) -> None:
    """The columns of `get`, the fields of `explain`, and `scale` with a selector for whoever scales from outside."""
    await user.apply()
    await deployed(user, kubelet)
    head = (await user.kubectl("get", "sspec")).splitlines()[0].split()
    assert head == ["NAME", "MODEL", "METHOD", "READY", "REPLICAS", "SLO", "REASON", "AGE"]
    wide = (await user.kubectl("get", "sspec", "-o", "wide")).splitlines()[0].split()
    assert wide[-4:] == ["K", "ACCEPT", "GOODPUT", "URL"]
    explained = await user.kubectl("explain", "smartspec.spec.slo")
    assert "time to the first token" in " ".join(explained.split())
    raw = f"/apis/smartspec.io/v1alpha1/namespaces/{user.namespace}/smartspecs/demo/scale"
    await user.kubectl("scale", "sspec", "demo", "--replicas=2")
    await deployed(user, kubelet, 2)
    assert "app.kubernetes.io/instance=demo" in await user.kubectl("get", "--raw", raw)


async def test_keys_are_never_logged(user: User, kubelet: Kubelet, operator: Operator) -> None:
    """Neither the log nor the resource nor its children's plain text hold the admin key."""
    await user.apply()
    await deployed(user, kubelet)
    key = await user.admin_key()
    assert len(key) > 30
    texts = [operator.log.read_text(), str(await user.resource()), str(await user.get("Deployment"))]
    assert not any(key in text for text in texts)


async def test_only_another_admin_key_replaces_the_pods(user: User, kubelet: Kubelet) -> None:
    """An annotation of its Secret, or the same key in a new Secret, does not; nor does a Secret that is gone."""
    key = {"stringData": {"key": "first"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}}
    await user.kubectl("apply", "-f", "-", stdin=json.dumps({**secret, **key}))
    await user.apply(server={"adminKeySecretRef": {"name": "mine", "key": "key"}})
    (pod,) = await deployed(user, kubelet)

    async def template() -> Any:
        return (await user.get("Deployment"))["spec"]["template"]

    async def asked(port: AdminPort, times: int) -> None:
        answers = port.requests

        async def enough() -> bool:
            return port.requests >= answers + times

        await eventually(enough, seconds=40)

    before = await template()
    async with admin_port(loopback(2), load(), "first") as port:
        await kubelet.run(pod, loopback(2))
        await is_condition(user, "MetricsAvailable", "True", "AllReplicasAnswer")
        await user.kubectl("annotate", "secret", "mine", "reviewed=yes")
        await user.kubectl("delete", "secret", "mine")
        await is_condition(user, "Degraded", "True", "SecretMissing")
        await is_condition(user, "MetricsAvailable", "False", "NoReplicaAnswers")
        await user.kubectl("apply", "-f", "-", stdin=json.dumps({**secret, **key}))
        await is_condition(user, "MetricsAvailable", "True", "AllReplicasAnswer")
        await asked(port, 3)
        assert await template() == before
        await user.kubectl("patch", "secret", "mine", "-p", json.dumps({"stringData": {"key": "second"}}))

        async def replaced() -> bool:
            return bool(await template() != before)

        await eventually(replaced, seconds=40)
    assert "second" not in str(await user.resource())


async def test_apply_yields_children_and_delete_leaves_nothing(user: User, kubelet: Kubelet) -> None:
    """Deployment, Service, ConfigMap and key appear with owner references, and go with their owner."""
    await user.apply(slo={"tpotSeconds": 0.05})
    await deployed(user, kubelet)
    uid = (await user.resource())["metadata"]["uid"]
    kinds = (("Deployment", "demo"), ("Service", "demo"), ("ConfigMap", "demo-policy"), ("Secret", "demo-admin-key"))
    for kind, name in kinds:
        (owner,) = (await user.get(kind, name))["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("SmartSpec", uid, True)
    assert (await user.resource())["metadata"].get("finalizers", []) == []
    await user.kubectl("delete", "smartspec", "demo")

    async def gone() -> bool:
        left = set(await versions(user))
        assert {item for item in left if "demo" in item} == set()
        return True

    await eventually(gone)
