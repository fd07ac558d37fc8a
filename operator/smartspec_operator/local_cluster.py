"""The `Cluster` protocol over processes on this machine: objects in memory, and a Deployment's pods as processes."""

import asyncio
import base64
import hashlib
import json
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from aiohttp import ClientSession
from yarl import URL

from smartspec_operator import local_rollout
from smartspec_operator.cluster import NotOursError, controller_of
from smartspec_operator.local_pod import LocalPod, PodConfigError, config_map_file, launch, secret_files, secret_value
from smartspec_operator.local_process import ReplicaProcess
from smartspec_operator.local_rollout import PodState
from smartspec_operator.resource import ANNOTATION_DELETION_COST, Manifest

RUNTIME = (sys.executable, "-m", "smartspec")
MAX_GRACE_SECONDS = 300.0


class LocalCluster:
    """The children of one SmartSpec on this machine; a `Cluster`.

    *folder* holds the processes' files and logs. `threads` is the share of the cores of each replica that starts from
    now on. `changed` is set whenever a pod's state changes; *route* is told the ready pods' public URLs whenever they
    change. *runtime* is the command that stands for a pod's image.
    """

    def __init__(
        self,
        folder: Path,
        session: ClientSession,
        *,
        threads: int,
        route: Callable[[Mapping[str, URL]], None],
        now: Callable[[], datetime],
        runtime: Sequence[str] = RUNTIME,
    ) -> None:
        self.threads = threads
        self.changed = asyncio.Event()
        self._folder = folder
        self._session = session
        self._route = route
        self._now = now
        self._runtime = runtime
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}
        self._pods: dict[str, LocalPod] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._num_created = 0
        self._stopped = False

    @property
    def pods(self) -> tuple[LocalPod, ...]:
        """All pods, those being deleted too."""
        return tuple(self._pods.values())

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The live object, or None when there is none."""
        if kind == "Pod":
            return self._pods[name].manifest(namespace) if name in self._pods else None
        live = self._objects.get((kind, name))
        return self._with_status(live) if live is not None else None

    async def has_key(self, namespace: str, name: str, key: str) -> bool:
        """Whether there is a Secret *name* with *key*."""
        return secret_value(self._objects, name, key) is not None

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> Sequence[Manifest]:
        """All live objects of *kind* that carry *labels*."""
        if kind == "Pod":
            objects = [pod.manifest(namespace) for pod in self._pods.values()]
        else:
            objects = [self._with_status(live) for (of, _), live in self._objects.items() if of == kind]
        return [live for live in objects if labels.items() <= live["metadata"].get("labels", {}).items()]

    async def knows(self, kind: str) -> bool:
        """No kind of somebody else's is here."""
        return False

    async def check(self, manifest: Manifest) -> None:
        """Nothing is refused, and everything is ours."""

    async def delete(self, manifest: Manifest) -> None:
        """Forget the object."""
        self._objects.pop((manifest["kind"], manifest["metadata"]["name"]), None)

    async def create(self, manifest: Manifest) -> None:
        """Make the Secret unless there is one; raises `NotOursError` when another controls it."""
        live = self._objects.get((manifest["kind"], manifest["metadata"]["name"]))
        if live is None:
            await self.apply(manifest)
        elif controller_of(live) != controller_of(manifest):
            raise NotOursError(f"Secret {manifest['metadata']['name']} exists and is not controlled by this SmartSpec")

    async def apply(self, manifest: Manifest) -> None:
        """Make the live object agree with *manifest*; raises `NotOursError` when another controls it."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "Pod":
            if name in self._pods:
                self._pods[name].annotations.update(manifest["metadata"].get("annotations", {}))
            return
        live = self._objects.get((kind, name))
        if live is not None and controller_of(manifest) not in (None, controller_of(live)):
            raise NotOursError(f"{kind} {name} exists and is not controlled by this SmartSpec")
        applied = _admitted(manifest, live)
        if applied == live:
            return
        self._objects[kind, name] = applied
        # A pod that referred to something missing is tried again, since it may just have come.
        self._pods = {pod.name: pod for pod in self._pods.values() if pod.process is not None}
        if kind == "ConfigMap":
            for key, text in applied.get("data", {}).items():
                _write(config_map_file(self._folder, name, key), text.encode())
        self._write_secrets()
        self._roll()

    async def stop(self, grace_seconds: float) -> None:
        """End every process, all at once, killing what is left after *grace_seconds*; nothing starts any more."""
        self._stopped = True
        self._end(list(self._pods))
        if self._ending:
            _, late = await asyncio.wait(self._ending, timeout=grace_seconds)
            self.kill()
            await asyncio.gather(*late)

    def kill(self) -> None:
        """End every process now; they are gone when `stop` has returned."""
        for pod in self._pods.values():
            if pod.process is not None:
                pod.process.kill()

    def _write_secrets(self) -> None:
        """Bring the files of Secrets that pods mount up to date; what is gone leaves its file, as with kubelet."""
        for (kind, _), live in self._objects.items():
            for path, name, key in secret_files(live["spec"]["template"], self._folder) if kind == "Deployment" else ():
                value = secret_value(self._objects, name, key)
                if value is not None and not (path.exists() and path.read_bytes() == value):
                    _write(path, value, 0o600)

    def _roll(self) -> None:
        """Move each Deployment one step on: start and end what its plan says."""
        if self._stopped:
            return
        for (kind, name), deployment in list(self._objects.items()):
            if kind != "Deployment":
                continue
            template = deployment["spec"]["template"]
            revision = _digest(template)
            states = [_state(pod) for pod in self._pods.values()]
            replicas = deployment["spec"]["replicas"]
            surge, away = local_rollout.bounds(deployment["spec"].get("strategy", {}), replicas)
            plan = local_rollout.plan(
                states, replicas=replicas, revision=revision, max_surge=surge, max_unavailable=away
            )
            self._end(plan.end)
            for _ in range(plan.start):
                self._start(f"{name}-{revision[:5]}-{self._num_created}", revision, template)

    def _start(self, name: str, revision: str, template: Manifest) -> None:
        self._num_created += 1
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        grace = min(float(template["spec"].get("terminationGracePeriodSeconds", 30)), MAX_GRACE_SECONDS)
        pod = LocalPod(name, revision, self._now(), template, {}, None)
        try:
            how = launch(
                template,
                self._objects,
                runtime=self._runtime,
                folder=self._folder,
                log=logs / f"{name}.log",
                threads=self.threads,
                grace_seconds=grace,
            )
        except PodConfigError as error:
            pod.problem = str(error)
        else:
            pod.process = ReplicaProcess(name, how, session=self._session, on_change=self._on_change)
            pod.process.start()
        self._pods[name] = pod
        self.changed.set()

    def _end(self, names: Sequence[str]) -> None:
        for name in names:
            pod = self._pods[name]
            if not pod.terminating:
                pod.terminating = True
                task = asyncio.create_task(self._stop_pod(pod), name=f"stop {name}")
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        if names:
            self._update_routes()

    async def _stop_pod(self, pod: LocalPod) -> None:
        if pod.process is not None:
            await pod.process.stop()
        self._pods.pop(pod.name, None)
        self._on_change()

    def _on_change(self) -> None:
        self._update_routes()
        self._roll()

    def _update_routes(self) -> None:
        """Tell who is ready. A pod being deleted is not: what it has in hand it finishes, and nothing new arrives."""
        for pod in self._pods.values():
            pod.note(self._now())
        ready = [pod for pod in self._pods.values() if pod.ready]
        self._route({pod.name: pod.process.url for pod in ready if pod.process and pod.process.url})
        self.changed.set()

    def _with_status(self, live: dict[str, Any]) -> Manifest:
        """*live*, and for a Deployment the status that its controller would write."""
        if live["kind"] != "Deployment":
            return live
        revision = _digest(live["spec"]["template"])
        pods = [pod for pod in self._pods.values() if not pod.terminating]
        ready = sum(pod.ready for pod in pods)
        status = {
            "observedGeneration": live["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": sum(pod.revision == revision for pod in pods),
            "readyReplicas": ready,
            "availableReplicas": ready,
        }
        return {**live, "status": status}


def _admitted(manifest: Manifest, live: Mapping[str, Any] | None) -> dict[str, Any]:
    """*manifest* as the API server would store it: with a uid and a generation, a Secret's text encoded."""
    applied = {**manifest, "metadata": dict(manifest["metadata"])}
    if "stringData" in applied:
        plain = applied.pop("stringData")
        encoded = {key: base64.b64encode(text.encode()).decode() for key, text in plain.items()}
        applied["data"] = {**applied.get("data", {}), **encoded}
    if live is None:
        applied["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1, "resourceVersion": "1"}
        return applied
    kept = ("uid", "generation", "resourceVersion")
    applied["metadata"] |= {key: live["metadata"][key] for key in kept}
    if applied != live:
        applied["metadata"]["resourceVersion"] = str(int(applied["metadata"]["resourceVersion"]) + 1)
        applied["metadata"]["generation"] += applied.get("spec") != live.get("spec")
    return applied


def _state(pod: LocalPod) -> PodState:
    return PodState(
        pod.name,
        pod.revision,
        pod.ready,
        pod.created.timestamp(),
        int(pod.annotations.get(ANNOTATION_DELETION_COST, 0)),
        pod.terminating,
    )


def _digest(template: Manifest) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace the file in one step: a process that reads now reads the old content or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode)
    partial.write_bytes(content)
    partial.replace(path)
