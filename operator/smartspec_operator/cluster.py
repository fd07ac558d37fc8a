"""Where the children of a SmartSpec live: the seam, and beside it the one thing every side of it must agree upon."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from smartspec_operator.resource import Manifest


class NotOursError(Exception):
    """An object of the wanted name exists and another owner holds it; it is left alone."""


class Cluster(Protocol):
    """Objects by kind, namespace and name, as manifests. What a SmartSpec owns dies with it.

    Kinds used: Deployment, Service, ConfigMap, Secret, PersistentVolumeClaim, Pod; PodMonitor and InferencePool where
    they are known.
    """

    async def knows(self, kind: str) -> bool:
        """Whether objects of *kind* can be had here: some kinds are installed in some clusters only."""
        ...

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The live object, or None when there is none."""
        ...

    async def has_key(self, namespace: str, name: str, key: str) -> bool | None:
        """Whether there is a Secret *name* with *key*; None where that may not be known."""
        ...

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> Sequence[Manifest]:
        """All live objects of *kind* that carry *labels*."""
        ...

    async def check(self, manifest: Manifest) -> None:
        """Write nothing, but raise what `apply` would raise."""
        ...

    async def delete(self, manifest: Manifest) -> None:
        """Remove an object that `list` returned; nothing happens when it is gone."""
        ...

    async def create(self, manifest: Manifest) -> None:
        """Make a Secret, and leave the one that is there as it is.

        Raises `NotOursError` when there is one and its controller is not the manifest's.
        """
        ...

    async def apply(self, manifest: Manifest) -> None:
        """Make the live object agree with *manifest* in every field that it names; writes nothing when it does.

        Raises `NotOursError` when the object exists and its controller is not the manifest's.
        """
        ...


def controller_of(manifest: Manifest) -> str | None:
    """The uid of the object's controller, if it has one."""
    for owner in manifest.get("metadata", {}).get("ownerReferences", ()):
        if owner.get("controller"):
            return str(owner.get("uid"))
    return None
