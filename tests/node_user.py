"""A user of a cluster whose pods really run: one SmartSpec of the bundled pair, watched as kubectl shows it."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from smartspec_operator.resource import Manifest

POLL_SECONDS = 0.25
PAIR: Manifest = {
    # Not compiled: on a model as small as this it gains little, and a start on a busy core takes a minute longer.
    "model": {"source": "/models/stdlib-target", "compile": "Off"},
    "speculation": {"draft": {"source": "/models/stdlib-draft"}},
    # One core each, so that replicas on one small machine are replicas and not rivals.
    "template": {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1"}}},
}
MODEL = "stdlib-target"
T = TypeVar("T")


def eventually(what: Callable[[], T], *, seconds: float, why: Callable[[], str] = str) -> T:
    """The first true value of *what*; fails after *seconds*, telling *why*."""
    deadline = time.monotonic() + seconds
    while True:
        if found := what():
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {why()}"
        time.sleep(POLL_SECONDS)


class NodeUser:
    """Speaks kubectl in one namespace about the SmartSpec *name* there."""

    def __init__(self, kubectl: Callable[..., str], namespace: str, name: str = "demo") -> None:
        self.namespace = namespace
        self.name = name
        self._kubectl = kubectl

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """kubectl in the namespace."""
        return self._kubectl("--namespace", self.namespace, *arguments, stdin=stdin, check=check)

    def get(self, kind: str, name: str = "") -> Any:
        """One object, by default the one named like the SmartSpec; None where there is none."""
        text = self.kubectl("get", kind, name or self.name, "--output=json", "--ignore-not-found")
        return json.loads(text) if text else None

    def apply(self, **spec: Any) -> None:
        """Create the SmartSpec, or make it so; parts that are left out are `PAIR`'s."""
        body = {
            "apiVersion": "smartspec.io/v1alpha1",
            "kind": "SmartSpec",
            "metadata": {"name": self.name},
            "spec": PAIR | spec,
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(body))

    def patch(self, **spec: Any) -> None:
        """Merge into its spec."""
        self.kubectl("patch", "smartspec", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    @property
    def status(self) -> dict[str, Any]:
        """What the operator says."""
        found: dict[str, Any] = (self.get("smartspec") or {}).get("status", {})
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        """One of its conditions, or nothing yet."""
        found = [condition for condition in self.status.get("conditions", []) if condition["type"] == kind]
        return found[0] if found else {}

    def is_ready(self, replicas: int = 1) -> bool:
        """Whether so many replicas serve, no more, and the spec is the one that was acted on."""
        body = self.get("smartspec")
        status = body.get("status", {})
        return (
            self.condition("Ready").get("status") == "True"
            and status.get("observedGeneration") == body["metadata"]["generation"]
            and (status.get("replicas"), status.get("readyReplicas")) == (replicas, replicas)
        )

    def wait_ready(self, replicas: int = 1, *, seconds: float = 240) -> None:
        """Return when `is_ready`; fails with what `kubectl describe` would tell."""
        eventually(lambda: self.is_ready(replicas), seconds=seconds, why=self.story)

    def story(self) -> str:
        """Status, pods and Events, for the one who reads a failure."""
        return "\n".join(
            [
                json.dumps(self.status, indent=1),
                self.kubectl("get", "pods", "--output=wide"),
                self.kubectl("get", "events", "--sort-by=.lastTimestamp"),
                self.kubectl("logs", "--selector", f"app.kubernetes.io/instance={self.name}", "--tail=20", check=False),
            ]
        )

    def pods(self, *, ready: bool = False) -> list[Manifest]:
        """Its pods that are not about to go, only ready ones if asked for."""
        text = self.kubectl("get", "pods", f"--selector=app.kubernetes.io/instance={self.name}", "--output=json")
        pods = [pod for pod in json.loads(text)["items"] if "deletionTimestamp" not in pod["metadata"]]
        return [pod for pod in pods if is_ready_pod(pod)] if ready else pods


def is_ready_pod(pod: Manifest) -> bool:
    """Whether Services send requests there."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
