"""Children that others edit or delete: every one comes back, no replica is lost by it, and an Event says so."""

import asyncio
import json
from typing import Any

import pytest

from control_plane import Kubelet, User, eventually
from smartspec.policy.settings import decode_settings
from smartspec_operator.resource import Manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # the generated client's own sockets

CHILDREN = {
    "service": ("Service", "demo"),
    "configmap": ("ConfigMap", "demo-policy"),
    "secret": ("Secret", "demo-admin-key"),
    "persistentvolumeclaim": ("PersistentVolumeClaim", "demo-cache"),
    "deployment": ("Deployment", "demo"),
}
EDITS: dict[str, dict[str, Any]] = {
    "service": {"spec": {"ports": [{"name": "http", "port": 8080, "targetPort": "http"}]}},
    "configmap": {"data": {"policy.json": "{}"}},
    "persistentvolumeclaim": {"metadata": {"labels": {"app.kubernetes.io/instance": "other"}}},
    "deployment": {
        "metadata": {"labels": {"app.kubernetes.io/managed-by": None}},
        "spec": {
            "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 1}},
            "template": {
                "spec": {
                    "containers": [
                        {"name": "smartspec", "image": "evil:1", "env": [{"name": "SPY", "value": "1"}]},
                        {"name": "miner", "image": "evil:2"},
                    ]
                }
            },
        },
    },
}


def wished(kind: str, live: Manifest) -> Any:
    """The part of a child that the edits touch, as the operator wants it."""
    labels = live["metadata"]["labels"]
    mine = [labels.get("app.kubernetes.io/instance"), labels.get("app.kubernetes.io/managed-by")]
    if kind == "deployment":
        containers = live["spec"]["template"]["spec"]["containers"]
        wish = mine, live["spec"]["replicas"], live["spec"]["strategy"]
        return wish, [(c["image"], len(c.get("env", ()))) for c in containers]
    if kind == "secret":  # another key is as good
        return mine, sorted(live["data"])
    if kind == "configmap":  # under another number
        return mine, decode_settings(live["data"]["policy.json"]).tpot_target_seconds
    return mine, live.get("spec", {}).get("ports")


async def made(user: User) -> dict[str, Any]:
    """Every child, once all are there."""
    await user.apply(
        replicas=2, slo={"tpotSeconds": 0.05}, storage={"cache": {"size": "1Gi", "storageClassName": "none"}}
    )

    async def all_made() -> dict[str, Any]:
        return {kind: await user.get(*CHILDREN[kind]) for kind in CHILDREN}

    return dict(await eventually(all_made))


async def repaired(user: User, before: dict[str, Any], kinds: list[str]) -> bool:
    """Whether the children of *kinds* are as they were."""
    for kind in kinds:
        live = await user.get(*CHILDREN[kind])
        assert wished(kind, live) == wished(kind, before[kind]), kind
        assert live["metadata"]["ownerReferences"] == before[kind]["metadata"]["ownerReferences"]
        assert "deletionTimestamp" not in live["metadata"] or kind == "persistentvolumeclaim"
    return True


async def events(user: User, reason: str) -> str:
    """The messages of Events with *reason*."""
    fields = "jsonpath={range .items[*]}{.message}{'\\n'}{end}"
    return await user.kubectl("get", "events", "--field-selector", f"reason={reason}", "-o", fields)


async def test_edits_of_every_child_are_undone(user: User, kubelet: Kubelet) -> None:
    """Specs, data and the labels by which they are found; the number of replicas never falls meanwhile."""
    before = await made(user)
    for kind, edit in EDITS.items():
        name = CHILDREN[kind][1]
        patch = "strategic" if kind == "deployment" else "merge"
        await user.kubectl("patch", kind, name, f"--type={patch}", "-p", json.dumps(edit))
    await eventually(lambda: repaired(user, before, list(EDITS)), seconds=30)
    assert (await user.get("Deployment"))["spec"]["replicas"] == 2

    told = await events(user, "Repaired")
    assert "Service demo was changed at spec.ports" in told
    assert "ConfigMap demo-policy was changed at data[policy.json]" in told
    assert (await user.resource())["status"]["policy"]["generation"] == 1  # nobody can have taken {} for a policy
    assert not await events(user, "PolicyChanged")


async def test_a_key_that_was_taken_out_is_told_and_a_new_secret_made(user: User, kubelet: Kubelet) -> None:
    """The operator has no right to write a Secret that is there: it says what to do, and does the rest."""
    await user.apply()
    await eventually(lambda: user.get("Secret", "demo-admin-key"))
    await user.kubectl("patch", "secret", "demo-admin-key", "--type=merge", "-p", '{"data":{"key":null}}')

    async def told() -> bool:
        degraded = await user.condition("Degraded")
        assert (degraded.get("status"), degraded.get("reason")) == ("True", "SecretMissing")
        return "delete the Secret" in degraded["message"]

    await eventually(told, seconds=40)
    await user.kubectl("delete", "secret", "demo-admin-key")

    async def again() -> bool:
        assert len(await user.admin_key()) > 30
        return bool((await user.condition("Degraded"))["reason"] != "SecretMissing")

    await eventually(again, seconds=40)

    async def known() -> bool:
        return "Secret demo-admin-key was deleted, and is there again" in await events(user, "Repaired")

    await eventually(known)


async def test_a_key_of_somebody_else_is_not_taken(user: User, kubelet: Kubelet) -> None:
    """Whoever put a Secret there would know what opens the admin ports: nothing is built until it is gone."""
    await user.kubectl("create", "secret", "generic", "demo-admin-key", "--from-literal=key=known")
    await user.apply()

    async def told() -> bool:
        ready = await user.condition("Ready")
        assert (ready.get("status"), ready.get("reason")) == ("False", "Conflict")
        return "Secret demo-admin-key exists" in ready["message"]

    await eventually(told)
    assert await user.api.get("Deployment", user.namespace, "demo") is None
    await user.kubectl("delete", "secret", "demo-admin-key")

    async def made() -> bool:
        assert await user.api.get("Deployment", user.namespace, "demo") is not None
        return await user.admin_key() != "known"

    await eventually(made, seconds=40)


async def test_every_deleted_child_comes_back(user: User, kubelet: Kubelet) -> None:
    """Of the same kind and name, with the same owner."""
    before = await made(user)
    kinds = [kind for kind in CHILDREN if kind != "persistentvolumeclaim"]  # in use, it outlives its deletion
    for kind in kinds:
        await user.kubectl("delete", kind, CHILDREN[kind][1], "--wait=false")

    async def new() -> bool:
        for kind in kinds:
            live = await user.get(*CHILDREN[kind])
            assert live["metadata"]["uid"] != before[kind]["metadata"]["uid"], kind
        return await repaired(user, before, kinds)

    await eventually(new, seconds=40)
    assert "ConfigMap demo-policy was deleted, and is there again" in await events(user, "Repaired")
    assert (await user.resource())["status"]["policy"]["generation"] == 1
    foreign = json.dumps({"data": {"policy.json": '{"generation": 5, "policy": "off"}'}})
    await user.kubectl("patch", "configmap", "demo-policy", "--type=merge", "-p", foreign)

    async def outnumbered() -> bool:  # who has read it takes only a later one
        settings = decode_settings((await user.get("ConfigMap", "demo-policy"))["data"]["policy.json"])
        assert (settings.generation, settings.policy) == (6, "request")
        return bool((await user.resource())["status"]["policy"]["generation"] == 6)

    await eventually(outnumbered)


async def test_what_others_add_to_maps_of_ours_is_taken_out(user: User, kubelet: Kubelet) -> None:
    """A selector that finds nothing, a template that rolls the pods: an apply alone would leave them. Told by path.

    What `kubectl rollout restart` and others annotate stays.
    """
    await user.apply(replicas=1)
    before = {kind: await eventually(lambda kind=kind: user.get(kind)) for kind in ("Service", "Deployment")}
    await user.kubectl("patch", "service", "demo", "--type=merge", "-p", '{"spec":{"selector":{"app":"evil"}}}')
    await user.kubectl("rollout", "restart", "deployment", "demo")
    pod = {"nodeSelector": {"disk": "no"}, "hostNetwork": True, "containers": [{"name": "smartspec", "tty": True}]}
    edit = {"spec": {"template": {"metadata": {"labels": {"zz": "1"}}, "spec": pod}}}
    await user.kubectl("patch", "deployment", "demo", "--type=strategic", "-p", json.dumps(edit))

    async def undone() -> bool:
        service, deployment = await user.get("Service"), await user.get("Deployment")
        assert service["spec"]["selector"] == before["Service"]["spec"]["selector"]
        template, wanted = deployment["spec"]["template"], before["Deployment"]["spec"]["template"]
        assert template["metadata"]["labels"] == wanted["metadata"]["labels"]
        assert template["spec"] == wanted["spec"]
        assert "kubectl.kubernetes.io/restartedAt" in template["metadata"]["annotations"]
        told = await events(user, "Repaired")
        assert "Service demo was changed at spec.selector.app," in told, told
        assert "spec.template.metadata.labels.zz" in told, told
        return True

    await eventually(undone)
    generation = (await user.get("Deployment"))["metadata"]["generation"]
    await asyncio.sleep(1)  # three ticks
    assert (await user.get("Deployment"))["metadata"]["generation"] == generation


async def test_who_changes_it_back_again_and_again_is_let_be_for_longer(user: User, kubelet: Kubelet) -> None:
    """And named in a Warning: nobody wins by rolling the pods every second. What else is edited is repaired at once."""
    await user.apply(replicas=1)
    await eventually(lambda: user.get("Deployment"))
    label = '{"spec":{"template":{"metadata":{"labels":{"zz":"1"}}}}}'

    async def labels() -> Any:
        return (await user.get("Deployment"))["spec"]["template"]["metadata"]["labels"]

    async def taken_out() -> bool:
        return "zz" not in await labels()

    for _ in range(3):
        await user.kubectl("patch", "deployment", "demo", "--type=merge", "-p", label)
        await eventually(taken_out)
    told = await eventually(lambda: events(user, "Contested"))
    assert "labels.zz" in told, told
    assert "3 times" in told, told
    assert "kubectl" in told, told
    await user.kubectl("patch", "deployment", "demo", "--type=merge", "-p", label)
    await asyncio.sleep(2)
    assert not await taken_out()
    await user.kubectl("patch", "service", "demo", "--type=merge", "-p", '{"spec":{"selector":{"app":"evil"}}}')

    async def selects() -> bool:
        return "app" not in (await user.get("Service"))["spec"]["selector"]

    await eventually(selects, seconds=3)


async def test_a_child_of_somebody_else_stops_all_others(user: User, kubelet: Kubelet) -> None:
    """A Deployment of the same name that is not ours: nothing of the SmartSpec is made, not even the Service.

    When it is gone, that is found out without an edit.
    """
    await user.kubectl("create", "deployment", "demo", "--image=theirs:1")
    theirs = (await user.get("Deployment"))["spec"]
    await user.apply()

    async def told() -> bool:
        condition = await user.condition("Ready")
        assert condition.get("reason") == "Conflict", condition
        assert "Deployment demo exists" in condition["message"]
        return True

    await eventually(told)
    assert (await user.get("Deployment"))["spec"] == theirs
    for kind, name in CHILDREN.values():
        assert kind == "Deployment" or await user.api.get(kind, user.namespace, name) is None
    await user.kubectl("delete", "deployment", "demo")

    async def made_after_all() -> bool:
        return bool((await user.get("Deployment"))["metadata"].get("ownerReferences"))

    await eventually(made_after_all, seconds=40)
