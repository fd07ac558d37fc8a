"""A pod's manifest as a process: what it runs, where its files are, and how its state reads in Kubernetes' words."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from smartspec_operator.local_process import Launch, Ports, ReplicaProcess
from smartspec_operator.resource import ADMIN_PORT_NAME, PORT_NAME, Manifest

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class PodConfigError(ValueError):
    """A pod refers to something that does not exist; the message names it."""


@dataclass(eq=False)
class LocalPod:
    """One pod: what it was made from, and the process that it is; no process where it could not be configured.

    `changed` is when it last became ready, or ceased to be.
    """

    name: str
    revision: str
    created: datetime
    template: Manifest
    annotations: dict[str, str]
    process: ReplicaProcess | None
    problem: str = ""
    terminating: bool = False
    was_ready: bool = False
    changed: datetime | None = None

    @property
    def ready(self) -> bool:
        """Whether it serves and is not being deleted."""
        return self.process is not None and self.process.ready and not self.terminating

    def note(self, now: datetime) -> None:
        """Remember *now* when readiness differs from what it was at the last call."""
        if self.ready != self.was_ready:
            self.was_ready, self.changed = self.ready, now

    def manifest(self, namespace: str) -> Manifest:
        """The pod as the API would show it."""
        deleted = {"deletionTimestamp": self.created.strftime(TIME_FORMAT)} if self.terminating else {}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": namespace,
                "labels": dict(self.template["metadata"]["labels"]),
                "annotations": self.annotations,
                "creationTimestamp": self.created.strftime(TIME_FORMAT),
                **deleted,
            },
            "spec": self._spec(),
            "status": self._status(),
        }

    def _spec(self) -> dict[str, Any]:
        """The template's spec with the ports that this run of the process has."""
        container = dict(self.template["spec"]["containers"][0])
        if self.process is not None and self.process.ports is not None:
            ports = self.process.ports
            container["ports"] = [
                {"name": PORT_NAME, "containerPort": ports.public},
                {"name": ADMIN_PORT_NAME, "containerPort": ports.admin},
            ]
        return {**self.template["spec"], "containers": [container]}

    def _status(self) -> dict[str, Any]:
        process, name = self.process, self.template["spec"]["containers"][0]["name"]
        if process is None:
            state: dict[str, Any] = {"waiting": {"reason": "CreateContainerConfigError", "message": self.problem}}
        elif process.state == "CrashLoopBackOff":
            state = {"waiting": {"reason": "CrashLoopBackOff", "message": process.message}}
        elif process.state == "Starting":
            state = {"waiting": {"reason": "ContainerCreating"}}
        else:
            state = {"running": {"startedAt": self.created.strftime(TIME_FORMAT)}}
        restarts = process.restarts if process is not None else 0
        status = {"name": name, "ready": self.ready, "restartCount": restarts, "state": state}
        address = {"podIP": "127.0.0.1"} if process is not None and process.ports is not None else {}
        return {
            "phase": "Running" if "running" in state else "Pending",
            "conditions": [
                {
                    "type": "Ready",
                    "status": str(self.ready),
                    "lastTransitionTime": (self.changed or self.created).strftime(TIME_FORMAT),
                }
            ],
            "containerStatuses": [status],
            **address,
        }


def launch(
    template: Manifest,
    objects: Mapping[tuple[str, str], Manifest],
    *,
    runtime: Sequence[str],
    folder: Path,
    log: Path,
    threads: int,
    grace_seconds: float,
) -> Launch:
    """How to run *template*'s container here; raises `PodConfigError` when it refers to what is not in *objects*.

    *objects* are found by (kind, name). Files of ConfigMaps and Secrets are under *folder*. What only makes sense in an
    image (the command, its writable folders, its ports) is replaced by *runtime*, this user's own folders, and free
    ports.
    """
    spec = template["spec"]
    container = spec["containers"][0]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container.get("volumeMounts", ())}
    # Kubelet's $$ is a plain $; variables, which it would also put in, are none of what the operator renders.
    arguments = [_placed(argument.replace("$$", "$"), mounts, objects, folder) for argument in container["args"]]

    def command(ports: Ports) -> Sequence[str]:
        # argparse keeps the last value of a flag: what the manifest says of addresses is for pods. Nothing is compiled:
        # a replica that starts would take the cores of those that serve for half a minute.
        return [
            *runtime, *arguments,
            "--host", "127.0.0.1", "--port", str(ports.public),
            "--admin-host", "127.0.0.1", "--admin-port", str(ports.admin),
            "--threads", str(threads), "--compile", "off", "--lame-duck", "0", "--drain-timeout", str(grace_seconds),
        ]  # fmt: skip

    environment = {}
    for variable in container.get("env", ()):
        value = _value(variable, objects)
        if not any(value == path or value.startswith(f"{path}/") for path in mounts):
            environment[variable["name"]] = value
    return Launch(command, environment, log, grace_seconds + 5.0)


def config_map_file(folder: Path, name: str, key: str) -> Path:
    """Where the text under *key* of a ConfigMap is kept for processes."""
    return folder / "configmaps" / name / key


def secret_files(template: Manifest, folder: Path) -> Iterator[tuple[Path, str, str]]:
    """The files of Secrets that *template* mounts: where each is kept for processes, its Secret and its key."""
    for volume in template["spec"].get("volumes", ()):
        if "secret" in volume:
            name = volume["secret"]["secretName"]
            for item in volume["secret"].get("items", ()):
                yield folder / "secrets" / name / item["path"], name, item["key"]


def secret_value(objects: Mapping[tuple[str, str], Manifest], name: str, key: str) -> bytes | None:
    """What a Secret holds under *key*; None where there is none."""
    encoded = objects.get(("Secret", name), {}).get("data", {}).get(key)
    return None if encoded is None else base64.b64decode(encoded)


def _placed(
    argument: str, mounts: Mapping[str, Manifest], objects: Mapping[tuple[str, str], Manifest], folder: Path
) -> str:
    """*argument*, or where the file that it names in a mounted ConfigMap or Secret is on this machine."""
    for path, volume in mounts.items():
        if not argument.startswith(f"{path}/"):
            continue
        file = argument.removeprefix(f"{path}/")
        if "configMap" in volume:
            return str(config_map_file(folder, volume["configMap"]["name"], file))
        for kept, name, key in secret_files({"spec": {"volumes": [volume]}}, folder):
            if kept.name == file:
                _there(objects, name, key, volume["name"])
                return str(kept)
    return argument


def _value(variable: Manifest, objects: Mapping[tuple[str, str], Manifest]) -> str:
    """An environment variable's value, from the Secret that it refers to where it does."""
    reference = variable.get("valueFrom", {}).get("secretKeyRef")
    if reference is None:
        return str(variable.get("value", ""))
    return _there(objects, reference["name"], reference["key"], variable["name"]).decode()


def _there(objects: Mapping[tuple[str, str], Manifest], name: str, key: str, what: str) -> bytes:
    """A Secret's value; raises `PodConfigError` in kubelet's words where there is none, *what* asked for it."""
    value = secret_value(objects, name, key)
    if value is None:
        known = ("Secret", name) in objects
        raise PodConfigError(
            f"{what}: " + (f"couldn't find key {key} in Secret {name}" if known else f'secret "{name}" not found')
        )
    return value
