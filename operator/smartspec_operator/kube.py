"""The Kubernetes API: a thin client by kind, and the arithmetic of patches."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from aiohttp import ClientError
from kubernetes.aio.client import ApiClient

from smartspec_operator.metrics import Metrics
from smartspec_operator.resource import FIELD_MANAGER, GROUP, PLURAL, VERSION, Manifest

ROOTS = {
    "Deployment": "/apis/apps/v1",
    "Service": "/api/v1",
    "ConfigMap": "/api/v1",
    "Secret": "/api/v1",
    "Pod": "/api/v1",
    "PersistentVolumeClaim": "/api/v1",
    "Event": "/api/v1",
    "Lease": "/apis/coordination.k8s.io/v1",
    "PodMonitor": "/apis/monitoring.coreos.com/v1",
    "InferencePool": "/apis/inference.networking.k8s.io/v1",
    "PodDisruptionBudget": "/apis/policy/v1",
    "SmartSpec": f"/apis/{GROUP}/{VERSION}",
}
OLDER = {"PodDisruptionBudget": "/apis/policy/v1beta1"}
"""Where older servers have a kind (Kubernetes before 1.21), with the same fields as far as we use them."""
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
TIMEOUT_SECONDS = 15.0


class ApiError(Exception):
    """The API server refused a request, or could not be reached (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """Requests to the API server by kind; a missing object is None."""

    def __init__(self, client: ApiClient, metrics: Metrics | None = None) -> None:
        self._client = client
        self._metrics = metrics or Metrics()
        self._older: set[str] = set()

    async def knows(self, kind: str) -> bool:
        """Whether the server has *kind*; in which version is remembered until it is asked again."""
        for roots in (ROOTS, OLDER):
            found = await self._request("GET", kind, roots[kind]) if kind in roots else None
            if any(resource.get("kind") == kind for resource in (found or {}).get("resources", ())):
                (self._older.add if roots is OLDER else self._older.discard)(kind)
                return True
        return False

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object."""
        return await self._request("GET", kind, self._path(kind, namespace, name))

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> Sequence[Manifest]:
        """All objects of *kind* in one namespace, or in all."""
        path = self._path(kind, namespace) + (f"?{urlencode({'labelSelector': selector})}" if selector else "")
        found = await self._request("GET", kind, path) or {}
        version, items = found.get("apiVersion", ""), found.get("items", [])
        return [{"apiVersion": version, "kind": kind, **item} for item in items]

    async def apply(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Server-side apply under our one field manager; fields that others took are taken back."""
        metadata = manifest["metadata"]
        query = urlencode({"fieldManager": FIELD_MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {}))
        path = self._path(manifest["kind"], metadata["namespace"], metadata["name"])
        applied = await self._request("PATCH", manifest["kind"], f"{path}?{query}", self._served(manifest), APPLY)
        if applied is None:
            raise ApiError(
                404, f"there is no place for {manifest['kind']} {metadata['name']}: its kind or namespace is gone"
            )
        return applied

    async def merge(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """*manifest* as a JSON merge patch: its lists replace the live ones as a whole."""
        metadata = manifest["metadata"]
        query = urlencode({"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {}))
        path = self._path(manifest["kind"], metadata["namespace"], metadata["name"])
        merged = await self._request("PATCH", manifest["kind"], f"{path}?{query}", self._served(manifest), MERGE)
        if merged is None:
            raise ApiError(404, f"{manifest['kind']} {metadata['name']} is gone")
        return merged

    async def patch(self, kind: str, namespace: str, name: str, patch: Manifest, subresource: str = "") -> None:
        """A JSON merge patch; nothing happens when the object is gone."""
        path = self._path(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        await self._request("PATCH", kind, f"{path}?{urlencode({'fieldManager': FIELD_MANAGER})}", patch, MERGE)

    async def create(self, manifest: Manifest) -> None:
        """A new object; raises `ApiError` when there is one of its name, or no such namespace."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        if await self._request("POST", kind, self._path(kind, metadata["namespace"]), manifest) is None:
            raise ApiError(404, f"there is no namespace {metadata['namespace']}")

    async def replace(self, manifest: Manifest) -> None:
        """An object as a whole; raises `ApiError` when it is gone, or no longer of the manifest's resource version."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        path = self._path(kind, metadata["namespace"], metadata["name"])
        if await self._request("PUT", kind, path, manifest) is None:
            raise ApiError(404, f"there is no {kind} {metadata['name']}")

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Remove the object with this very uid; nothing happens when it is gone."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        await self._request("DELETE", kind, self._path(kind, namespace, name), options)

    def _path(self, kind: str, namespace: str | None, name: str = "") -> str:
        plural = PLURAL if kind == "SmartSpec" else f"{kind.lower()}s"
        place = f"/namespaces/{namespace}" if namespace else ""
        return f"{self._root(kind)}{place}/{plural}" + (f"/{name}" if name else "")

    def _root(self, kind: str) -> str:
        return OLDER[kind] if kind in self._older else ROOTS[kind]

    def _served(self, manifest: Manifest) -> Manifest:
        """*manifest* in the version that the server has."""
        kind = manifest["kind"]
        return {**manifest, "apiVersion": OLDER[kind].removeprefix("/apis/")} if kind in self._older else manifest

    async def _request(
        self, method: str, kind: str, path: str, body: Manifest | None = None, content: str = "application/json"
    ) -> dict[str, Any] | None:
        """The server's answer; None for 404. Raises `ApiError`."""
        try:
            status, answer = await self._exchange(method, path, body, content)
        except (ClientError, TimeoutError, OSError) as error:
            self._metrics.api_requests.labels(method, kind, "none").inc()
            raise ApiError(0, f"{method} {kind}: {type(error).__name__} {error}".rstrip()) from error
        self._metrics.api_requests.labels(method, kind, str(status)).inc()
        if status == 404:
            return None
        if status >= 400:
            raise ApiError(status, answer.get("message", f"{method} {path}: HTTP {status}"))
        return answer

    async def _exchange(
        self, method: str, path: str, body: Manifest | None, content: str
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Accept": "application/json", "Content-Type": content}
        serialized = await self._client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        response = await self._client.call_api(*serialized, _request_timeout=TIMEOUT_SECONDS)
        data: bytes = await response.read()  # type: ignore[no-untyped-call]
        try:
            return response.status, msgspec.json.decode(data)
        except msgspec.DecodeError:
            return response.status, {}


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
