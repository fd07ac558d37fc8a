"""What `local` tells: a line for each thing that changed, and the whole state as a file for programs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from smartspec_operator.front import Front
from smartspec_operator.local_pod import LocalPod
from smartspec_operator.reported import Status
from smartspec_operator.resource import SmartSpec


def snapshot(owner: SmartSpec, url: str, pods: Sequence[LocalPod], front: Front) -> dict[str, Any]:
    """The state as JSON-ready data: the resource's status, each process, and the front's counts."""
    return {
        "name": owner.name,
        "model": owner.served_name,
        "url": url,
        "status": msgspec.to_builtins(owner.status),
        "pods": [_pod(pod) for pod in pods],
        "front": {
            "requests": front.requests_total,
            "retries": front.retries_total,
            "refused": front.refused_total,
            "outstanding": front.outstanding,
        },
    }


def write(path: Path, state: dict[str, Any]) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(state, indent=1))
    partial.replace(path)


class Narrator:
    """Says what changed from one state to the next, once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._pods: dict[str, str] = {}
        self._status = Status()

    def tell(self, status: Status, pods: Sequence[LocalPod]) -> None:
        """Compare with what was told last."""
        self._tell_pods({pod.name: _state(pod) for pod in pods})
        before, self._status = self._status, status
        for condition in status.conditions:
            old = before.condition(condition.type)
            if old is None or (old.status, old.reason) != (condition.status, condition.reason):
                self._say(f"{condition.type}={condition.status} {condition.reason}: {condition.message}")
        # A record is completed later by what was measured: it is told when it is made.
        told = {(record.time, record.reason) for record in before.scaling_history}
        for record in status.scaling_history:
            if (record.time, record.reason) not in told:
                self._say(f"replicas {record.from_replicas} -> {record.to_replicas}, {record.reason}: {record.message}")
        policy = status.policy
        if policy is not None and (before.policy is None or policy.generation != before.policy.generation):
            self._say(f"policy {policy.name}, generation {policy.generation}: {policy.reason or 'as the spec says'}")

    def _tell_pods(self, states: dict[str, str]) -> None:
        for name, state in states.items():
            if self._pods.get(name) != state:
                self._say(f"{name}: {state}")
        for name in self._pods.keys() - states.keys():
            self._say(f"{name}: gone")
        self._pods = states


def _pod(pod: LocalPod) -> dict[str, Any]:
    process = pod.process
    return {
        "name": pod.name,
        "state": _state(pod),
        "ready": pod.ready,
        "restarts": process.restarts if process is not None else 0,
        "url": str(process.url) if process is not None and process.url is not None else "",
        "process_id": process.process_id if process is not None else None,
    }


def _state(pod: LocalPod) -> str:
    """One word where all is well, the reason where it is not."""
    process = pod.process
    if process is None:
        return f"CreateContainerConfigError: {pod.problem}"
    if pod.ready:
        return "ready"
    if pod.terminating:
        return "finishing its requests"
    if process.state == "CrashLoopBackOff":
        return f"CrashLoopBackOff: {process.message}"
    return "draining" if process.was_ready else "starting"
