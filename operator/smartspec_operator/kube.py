"""The Kubernetes API: a thin client, and a `Cluster` over it that reads once per tick and writes only what differs."""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from aiohttp import ClientError
from kubernetes.aio.client import ApiClient

from smartspec_operator.cluster import NotOursError, controller_of
from smartspec_operator.resource import FIELD_MANAGER, GROUP, LABEL_MANAGED_BY, PLURAL, VERSION, Manifest

ROOTS = {
    "Deployment": "/apis/apps/v1",
    "Service": "/api/v1",
    "ConfigMap": "/api/v1",
    "Secret": "/api/v1",
    "Pod": "/api/v1",
    "Event": "/api/v1",
    "SmartSpec": f"/apis/{GROUP}/{VERSION}",
}
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
TIMEOUT_SECONDS = 15.0
SECRET_SECONDS = 30.0
"""How long a Secret that was read is trusted: it changes rarely, and is read by name, one request each."""


class ApiError(Exception):
    """The API server refused a request, or could not be reached (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """Requests to the API server by kind; a missing object is None."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object."""
        return await self._request("GET", _path(kind, namespace, name))

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> Sequence[Manifest]:
        """All objects of *kind* in one namespace, or in all."""
        path = _path(kind, namespace) + (f"?{urlencode({'labelSelector': selector})}" if selector else "")
        found = await self._request("GET", path) or {}
        version, items = found.get("apiVersion", ""), found.get("items", [])
        return [{"apiVersion": version, "kind": kind, **item} for item in items]

    async def apply(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Server-side apply under our one field manager; fields that others took are taken back."""
        metadata = manifest["metadata"]
        query = urlencode({"fieldManager": FIELD_MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {}))
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"])
        return await self._request("PATCH", f"{path}?{query}", manifest, APPLY) or {}

    async def patch(self, kind: str, namespace: str, name: str, patch: Manifest, subresource: str = "") -> None:
        """A JSON merge patch; nothing happens when the object is gone."""
        path = _path(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        await self._request("PATCH", f"{path}?{urlencode({'fieldManager': FIELD_MANAGER})}", patch, MERGE)

    async def create(self, manifest: Manifest) -> None:
        """A new object."""
        await self._request("POST", _path(manifest["kind"], manifest["metadata"]["namespace"]), manifest)

    async def _request(
        self, method: str, path: str, body: Manifest | None = None, content: str = "application/json"
    ) -> dict[str, Any] | None:
        headers = {"Accept": "application/json", "Content-Type": content}
        try:
            serialized = await self._client.param_serialize(
                method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = await self._client.call_api(*serialized, _request_timeout=TIMEOUT_SECONDS)
            data: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{type(error).__name__} {error}".rstrip()) from error
        if response.status == 404:
            return None
        try:
            answer: dict[str, Any] = json.loads(data)
        except ValueError:
            answer = {}
        if response.status >= 400:
            raise ApiError(response.status, answer.get("message", f"{method} {path}: HTTP {response.status}"))
        return answer


def _path(kind: str, namespace: str | None, name: str = "") -> str:
    plural = PLURAL if kind == "SmartSpec" else f"{kind.lower()}s"
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{ROOTS[kind]}{place}/{plural}" + (f"/{name}" if name else "")


class KubernetesCluster:
    """What outlives a tick: which objects are known to agree with what was applied, and the Secrets read lately.

    Only a cache: a new process tries every child once, and finds that they agree already.
    """

    def __init__(self, api: Api, namespace: str | None) -> None:
        self.api = api
        self.namespace = namespace
        self._agreed: dict[tuple[str, str, str], tuple[str, str]] = {}
        self._secrets: dict[tuple[str, str], tuple[float, Manifest]] = {}

    def snapshot(self) -> "Snapshot":
        """A `Cluster` that reads each kind at most once, for all resources together."""
        return Snapshot(self)

    async def secret(self, namespace: str, name: str) -> Manifest | None:
        """A Secret by name, at most `SECRET_SECONDS` old."""
        read, known = self._secrets.get((namespace, name), (0.0, None))
        if known is not None and time.monotonic() - read < SECRET_SECONDS:
            return known
        live = await self.api.get("Secret", namespace, name)
        if live is not None:
            self._secrets[namespace, name] = (time.monotonic(), live)
        return live

    async def apply(self, manifest: Manifest, live: Manifest | None) -> None:
        """Apply *manifest* unless *live* is what came of applying the same before."""
        metadata = manifest["metadata"]
        key = (manifest["kind"], metadata["namespace"], metadata["name"])
        wish = _digest(manifest)
        if live is not None and self._agreed.get(key) == (wish, _substance(live)):
            return
        if "ownerReferences" not in metadata:
            await self._mark(manifest, live)
            return
        # Listed by label: an object that somebody else made under the same name shows only when asked for by name.
        found = await self.api.get(*key)
        if found is not None and controller_of(found) != controller_of(manifest):
            raise NotOursError(f"{key[0]} {key[2]} exists and is not controlled by this SmartSpec")
        # An apply that changes nothing may still be a write (of who manages which field): ask before it.
        applied = await self.api.apply(manifest, dry_run=True) if found is not None else None
        if applied is None or found is None or _substance(applied) != _substance(found):
            applied = await self.api.apply(manifest)
        self._agreed[key] = (wish, _substance(applied))
        if manifest["kind"] == "Secret":
            self._secrets[key[1], key[2]] = (time.monotonic(), applied)

    async def _mark(self, manifest: Manifest, live: Manifest | None) -> None:
        """Annotate an object that is not ours to apply; nothing when it says so already, or is gone."""
        metadata = manifest["metadata"]
        annotations = metadata["annotations"]
        if live is None or annotations.items() <= (live["metadata"].get("annotations") or {}).items():
            return
        patch = {"metadata": {"annotations": annotations}}
        await self.api.patch(manifest["kind"], metadata["namespace"], metadata["name"], patch)


class Snapshot:
    """One moment of the cluster; a `Cluster`. However many resources there are, each kind costs one request."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self.started = time.monotonic()
        self._cluster = cluster
        self._lists: dict[str, asyncio.Task[Sequence[Manifest]]] = {}

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object as it was when its kind was first asked for."""
        if kind == "Secret":
            return await self._cluster.secret(namespace, name)
        for live in await self._all(kind):
            if live["metadata"]["name"] == name and live["metadata"]["namespace"] == namespace:
                return live
        return None

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> Sequence[Manifest]:
        """The same for all with *labels*."""
        return [
            live
            for live in await self._all(kind)
            if live["metadata"]["namespace"] == namespace
            and labels.items() <= (live["metadata"].get("labels") or {}).items()
        ]

    async def apply(self, manifest: Manifest) -> None:
        """Write *manifest* where the moment does not show it written."""
        metadata = manifest["metadata"]
        live = None
        if manifest["kind"] != "Secret":
            live = await self.get(manifest["kind"], metadata["namespace"], metadata["name"])
        await self._cluster.apply(manifest, live)

    async def _all(self, kind: str) -> Sequence[Manifest]:
        if kind not in self._lists:
            selector = f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"
            self._lists[kind] = asyncio.create_task(self._cluster.api.list(kind, self._cluster.namespace, selector))
        return await asyncio.shield(self._lists[kind])


def merge_patch(old: Any, new: Any) -> Any:
    """The JSON merge patch (RFC 7386) that turns *old* into *new*; an empty one when they are equal."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif value != before or key not in old:
            patch[key] = value
    return patch


def _substance(live: Manifest) -> str:
    """What tells whether someone changed the object: all but its status and what the server counts."""
    counted = ("resourceVersion", "managedFields", "generation")
    metadata = {key: value for key, value in live["metadata"].items() if key not in counted}
    return _digest({**{key: value for key, value in live.items() if key != "status"}, "metadata": metadata})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
