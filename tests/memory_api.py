"""An API server in memory, which fails where a test wants it to."""

from collections.abc import Sequence
from typing import Any

from smartspec_operator.kube import Api
from smartspec_operator.resource import Manifest


class MemoryApi(Api):
    """Takes what it is asked to, but fails where `failing` says: a verb and a kind."""

    def __init__(self) -> None:
        self.live: dict[tuple[str, str], dict[str, Any]] = {}
        self.failing: dict[tuple[str, str], Exception] = {}
        self.asked: list[tuple[str, str]] = []

    def _ask(self, verb: str, kind: str) -> None:
        self.asked.append((verb, kind))
        if (error := self.failing.get((verb, kind))) is not None:
            raise error

    async def knows(self, kind: str) -> bool:
        """Every kind."""
        self._ask("knows", kind)
        return True

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object."""
        return self.live.get((kind, name))

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> Sequence[Manifest]:
        """All of them."""
        self._ask("list", kind)
        return [live for (of, _), live in self.live.items() if of == kind]

    async def apply(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Keep it."""
        self._ask("apply", manifest["kind"])
        metadata = {"uid": f"uid-{manifest['metadata']['name']}", "generation": 1, **manifest["metadata"]}
        made = {**manifest, "metadata": metadata}
        if not dry_run:
            self.live[manifest["kind"], metadata["name"]] = made
        return made

    async def create(self, manifest: Manifest) -> None:
        """Keep it."""
        self._ask("create", manifest["kind"])
        self.live[manifest["kind"], manifest["metadata"]["name"]] = dict(manifest)

    async def merge(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """As it was: nobody looks at what was merged."""
        self._ask("apply", manifest["kind"])
        return self.live[manifest["kind"], manifest["metadata"]["name"]]

    async def patch(self, kind: str, namespace: str, name: str, patch: Any, subresource: str = "") -> None:
        """The status, of which only the first level is merged."""
        self._ask("patch", kind)
        live = self.live[kind, name]
        self.live[kind, name] = {**live, "status": {**live.get("status", {}), **patch["status"]}}

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Drop it."""
        self._ask("delete", kind)
        del self.live[kind, name]
