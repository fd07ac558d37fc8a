"""What breaks on a real node: a runtime killed, the operator killed, the API server away, children edited by hand."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from charts import NAMESPACE
from node_user import MODEL, NodeUser, eventually
from nodes import ApiServer
from release import Release
from smartspec_operator.resource import Manifest
from traffic import Traffic

ServiceUrl = Callable[[str, str], str]
AWAY_SECONDS = 60


def kill(pod: Manifest, program: str) -> None:
    """SIGKILL to the process of *pod* whose command line has *program*: no pod, no kubelet and no signal handler is
    asked. Skips where the node is not this machine."""
    uid = pod["metadata"]["uid"]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if uid in (folder / "cgroup").read_text() and program in (folder / "cmdline").read_text():
                os.kill(int(folder.name), signal.SIGKILL)
                return
        except (OSError, UnicodeDecodeError):
            continue
    pytest.skip("the pods' processes are not on this machine")


def test_a_killed_replica_takes_only_its_own_requests_along(
    release: Release, kubectl: Callable[..., str], namespace: str, service_url: ServiceUrl
) -> None:
    """Streams that it was writing fail within a second and never look complete; Ready tells within 10 s; what comes
    back has the fleet's policy."""
    user = NodeUser(kubectl, namespace)
    user.apply(replicas=2)
    user.wait_ready(2)
    generation = user.status["policy"]["generation"]
    with Traffic(service_url(namespace, user.name), MODEL, clients=8, max_tokens=256) as traffic:
        time.sleep(5)
        assert not traffic.failed, traffic.report()
        killed = time.monotonic()
        kill(user.pods()[0], "smartspec")
        eventually(lambda: user.status["readyReplicas"] == 1, seconds=10, why=user.story)
        told = time.monotonic() - killed
        user.wait_ready(2)
        back = time.monotonic() - killed
        eventually(lambda: user.condition("PolicyApplied").get("status") == "True", seconds=20, why=user.story)
        time.sleep(3)
    in_flight = [outcome for outcome in traffic.failed if outcome.began <= killed]
    refused = [outcome for outcome in traffic.failed if outcome.began > killed]
    print(
        f"\n{len(in_flight)} streams ended {[f'{o.ended - killed:.2f} s' for o in in_flight]} after the kill; "
        f"Ready told after {told:.1f} s; {len(refused)} new requests met the dead address until "
        f"{max((o.ended - killed for o in refused), default=0):.1f} s; two replicas again after {back:.1f} s; "
        f"{traffic.report()}"
    )
    assert in_flight
    for outcome in in_flight:
        assert outcome.ended - killed < 1
    for outcome in traffic.failed:
        assert outcome.finish_reason is None
    # Until the kubelet has seen the death and kube-proxy has heard of it, the Service still names the address: a client
    # is refused there, before anything was accepted, and its retry goes elsewhere.
    for outcome in refused:
        assert "APIConnectionError" in outcome.error
        assert outcome.ended - killed < 10
    assert user.status["policy"]["generation"] >= generation


def operators(kubectl: Callable[..., str]) -> list[Manifest]:
    """The operator's running pods."""
    found = json.loads(kubectl("--namespace", NAMESPACE, "get", "pods", "--output=json"))["items"]
    return [pod for pod in found if pod["status"]["phase"] == "Running"]


def test_a_killed_operator_is_missed_by_nobody(
    release: Release, kubectl: Callable[..., str], namespace: str, service_url: ServiceUrl
) -> None:
    """Serving goes on, nothing is made twice, and the next operator takes up the wish that was changed meanwhile."""
    user = NodeUser(kubectl, namespace)
    user.apply()
    user.wait_ready()
    pods = {pod["metadata"]["uid"] for pod in user.pods()}
    with Traffic(service_url(namespace, user.name), MODEL, clients=2) as traffic:
        time.sleep(2)
        killed = time.monotonic()
        kill(operators(kubectl)[0], "smartspec-operator")
        user.patch(replicas=2)
        user.wait_ready(2)
        took = time.monotonic() - killed
    print(f"\na wish made after the kill was true {took:.1f} s later; {traffic.report()}")
    assert not traffic.failed, traffic.report()
    assert pods < {pod["metadata"]["uid"] for pod in user.pods()}
    assert len(user.pods()) == 2


def test_without_an_api_server_serving_goes_on(
    release: Release, kubectl: Callable[..., str], namespace: str, service_url: ServiceUrl, api_server: ApiServer
) -> None:
    """For a minute nobody can be asked; after it nothing is lost, nothing is double, and wishes are granted again."""
    user = NodeUser(kubectl, namespace)
    user.apply(replicas=2)
    user.wait_ready(2)
    pods = {pod["metadata"]["uid"] for pod in user.pods()}
    with Traffic(service_url(namespace, user.name), MODEL, clients=2) as traffic:
        api_server.stop()
        try:
            time.sleep(AWAY_SECONDS)
        finally:
            api_server.start()
        returned = time.monotonic()
        user.patch(speculation={"maxTokens": 4})
        eventually(
            lambda: user.status["policy"].get("maxSpeculativeTokens") == 4 and user.is_ready(2),
            seconds=180,
            why=user.story,
        )
        took = time.monotonic() - returned
    print(f"\na wish made at the API server's return was true {took:.1f} s later; {traffic.report()}")
    assert not traffic.failed, traffic.report()
    assert {pod["metadata"]["uid"] for pod in user.pods()} == pods


def test_what_is_edited_by_hand_comes_back(release: Release, kubectl: Callable[..., str], namespace: str) -> None:
    """A Service deleted, a Deployment scaled; and a Service that is not ours is left alone and reported."""
    user, other = NodeUser(kubectl, namespace), NodeUser(kubectl, namespace, "taken")
    ours = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken"}, "spec": {"ports": [{"port": 1}]}}
    user.kubectl("apply", "-f", "-", stdin=json.dumps(ours))
    other.apply()
    user.apply()
    user.wait_ready()
    user.kubectl("delete", "service", user.name)
    user.kubectl("scale", "deployment", user.name, "--replicas=0")
    eventually(lambda: user.get("service") is not None, seconds=20, why=user.story)
    eventually(lambda: user.get("deployment")["spec"]["replicas"] == 1, seconds=20, why=user.story)
    user.wait_ready()
    eventually(lambda: other.condition("Ready").get("status") == "False", seconds=20, why=other.story)
    assert "taken" in other.condition("Ready")["message"]
    assert user.get("service", "taken")["spec"]["ports"][0]["port"] == 1
    assert other.get("deployment") is None
