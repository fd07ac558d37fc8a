"""Why replicas do not get ready: each trouble under one name, in terms of the spec, and without flapping."""

from typing import Any

import pytest

from fleets import smartspec
from smartspec_operator.troubles import deployment_problem, in_terms_of, pod_problem
from smartspec_operator.world import Problem


def container(**state: Any) -> dict[str, Any]:
    """A pod's status with one container of this state."""
    return {"containerStatuses": [state]}


def waits(reason: str, message: str = "") -> dict[str, Any]:
    """The state of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}


def died(message: str, **more: Any) -> dict[str, Any]:
    """How a container ended."""
    return {"terminated": {"exitCode": 1, "message": message, **more}}


LAST = "2026-01-01 12:00:00 INFO smartspec event=listening\nsmartspec: draft x: vocabularies differ\n"
HUB = "smartspec: model org/x: there is no such folder, and taken as a hub id, its config cannot be loaded: 401"
POD_CASES: list[tuple[dict[str, Any], Problem | None]] = [
    ({}, None),
    (container(state={"running": {}}), None),
    (container(state=waits("ContainerCreating")), None),
    (container(state=waits("ErrImagePull", "not found")), Problem("ImagePullBackOff", "not found")),
    (container(state=waits("ImagePullBackOff", "Back-off")), Problem("ImagePullBackOff", "Back-off")),
    (
        container(state=waits("CrashLoopBackOff", "back-off 10s"), lastState=died(LAST)),
        Problem("CrashLoopBackOff", "smartspec: draft x: vocabularies differ"),
    ),
    (
        container(state={"running": {}}, lastState=died(LAST)),
        Problem("CrashLoopBackOff", "smartspec: draft x: vocabularies differ"),
    ),
    (container(state=died("boom")), Problem("CrashLoopBackOff", "boom")),
    (container(state=died("", exitCode=0)), None),
    (container(state=died("")), Problem("CrashLoopBackOff", "exit status 1")),
    (container(state=waits("CrashLoopBackOff"), lastState=died(HUB)), Problem("ModelDownloadFailed", HUB)),
    ({"phase": "Failed", "reason": "Evicted", "message": "disk"}, Problem("Evicted", "disk")),
    ({"phase": "Failed", "reason": "Evicted", **container(state=died("", exitCode=137))}, Problem("Evicted")),
    ({"phase": "Failed"}, Problem("Failed")),
    (
        {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}]},
        Problem("Unschedulable", "no GPU"),
    ),
]


@pytest.mark.parametrize(("status", "problem"), POD_CASES)
def test_a_pods_trouble_has_one_name(status: dict[str, Any], problem: Problem | None) -> None:
    """What kubelet calls by turns different names is one trouble; what is on its way is none."""
    assert pod_problem(status) == problem


def test_a_replica_that_recovered_has_no_trouble() -> None:
    """Once ready, an earlier death is history."""
    status = container(state={"running": {}}, lastState=died(LAST))
    assert pod_problem({**status, "conditions": [{"type": "Ready", "status": "True"}]}) is None


def test_memory_that_ran_out_says_what_to_raise() -> None:
    """The kernel leaves no words, so the operator finds some."""
    problem = pod_problem(container(state=waits("CrashLoopBackOff"), lastState=died("", reason="OOMKilled")))
    assert problem is not None
    assert problem.reason == "OOMKilled"
    assert "spec.template.resources.limits.memory" in problem.message


@pytest.mark.parametrize(
    ("problem", "spec", "told"),
    [
        (
            Problem("CreateContainerConfigError", 'secret "keys" not found'),
            {"server": {"apiKeySecretRef": {"name": "keys", "key": "k"}}},
            ("SecretMissing", "spec.server.apiKeySecretRef: "),
        ),
        (
            Problem("CreateContainerConfigError", "couldn't find key t in Secret ns/hub"),
            {"model": {"source": "m", "hubTokenSecretRef": {"name": "hub", "key": "t"}}},
            ("SecretMissing", "spec.model.hubTokenSecretRef: "),
        ),
        (
            Problem("Unschedulable", 'persistentvolumeclaim "weights" not found'),
            {"storage": {"cache": {"claimName": "weights"}}},
            ("CacheClaimMissing", "spec.storage.cache.claimName: "),
        ),
        (
            Problem("ImagePullBackOff", "not found"),
            {"template": {"image": "no/such"}},
            ("ImagePullBackOff", "spec.template.image: "),
        ),
        (Problem("ModelDownloadFailed", HUB), {}, ("ModelDownloadFailed", "spec.model.source: ")),
        (
            Problem("ModelDownloadFailed", HUB.replace("model", "draft", 1)),
            {"speculation": {"draft": {"source": "org/x"}}},
            ("ModelDownloadFailed", "spec.speculation.draft.source: "),
        ),
        (Problem("CrashLoopBackOff", "boom"), {}, ("CrashLoopBackOff", "boom")),
    ],
)
def test_trouble_names_the_field_it_comes_from(problem: Problem, spec: dict[str, Any], told: tuple[str, str]) -> None:
    """Whoever reads it need not know what was made of the spec."""
    found = in_terms_of(smartspec(**spec), problem)
    assert found.reason == told[0]
    assert found.message.startswith(told[1])


def test_pods_that_cannot_be_made_are_told_by_the_deployment() -> None:
    """A quota or an admission rule leaves no pod that could speak."""
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    assert deployment_problem({"status": {"conditions": [condition]}}) == Problem("FailedCreate", "exceeded quota")
    assert deployment_problem({"status": {}}) is None
    assert deployment_problem(None) is None
