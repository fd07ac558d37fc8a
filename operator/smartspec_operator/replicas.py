"""How replicas are read and told: the seam to the pods' admin port, and HTTP behind it."""

import asyncio
import base64
from typing import Protocol

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from smartspec.policy.load import LoadReport, decode_load
from smartspec.policy.settings import PolicySettings, encode_settings
from smartspec_operator.cluster import Cluster
from smartspec_operator.metrics import Metrics
from smartspec_operator.resource import SmartSpec
from smartspec_operator.world import Failure, Pod

TIMEOUT = ClientTimeout(total=1.0)
AGAIN_TIMEOUT = ClientTimeout(total=0.75)
"""A replica that was busy for a moment is asked again in the same look; both together take less than a tick."""
AT_ONCE = 128
"""So many requests to replicas run at once. What waits for its turn is not late yet: with hundreds of replicas the last
answer would otherwise time out though its replica was quick."""
MAX_ANSWER_BYTES = 1024 * 1024
"""Many times what a report takes. One image that answers without end must not take the memory that serves everybody."""


class Replicas(Protocol):
    """The admin ports of the pods of a SmartSpec. A failure is a value, never an exception."""

    async def load(self, owner: SmartSpec, pod: Pod) -> LoadReport | Failure:
        """What the replica says of itself."""
        ...

    async def push(self, owner: SmartSpec, pod: Pod, settings: PolicySettings) -> Failure | None:
        """Hand the replica a policy; one that has a later generation keeps its own."""
        ...

    async def drain(self, owner: SmartSpec, pod: Pod) -> Failure | None:
        """Have the replica take no new requests and finish those it has; asking twice is asking once."""
        ...


class HttpReplicas:
    """The admin ports over HTTP, with the admin key read from the owner's Secret in *cluster*; a `Replicas`."""

    def __init__(self, session: ClientSession, cluster: Cluster, metrics: Metrics, slots: asyncio.Semaphore) -> None:
        self._session = session
        self._cluster = cluster
        self._metrics = metrics
        self._slots = slots

    async def load(self, owner: SmartSpec, pod: Pod) -> LoadReport | Failure:
        """`GET /load`, once more where it was late."""
        answer = await self._ask(owner, pod, "GET", "/load")
        if isinstance(answer, Failure) and answer.is_late:
            answer = await self._ask(owner, pod, "GET", "/load", patience=AGAIN_TIMEOUT)
        if isinstance(answer, Failure):
            return answer
        try:
            return decode_load(answer)
        except msgspec.MsgspecError as error:
            return Failure(f"/load: {error}")

    async def push(self, owner: SmartSpec, pod: Pod, settings: PolicySettings) -> Failure | None:
        """`PUT /policy`."""
        answer = await self._ask(owner, pod, "PUT", "/policy", encode_settings(settings))
        return answer if isinstance(answer, Failure) else None

    async def drain(self, owner: SmartSpec, pod: Pod) -> Failure | None:
        """`POST /drain`."""
        answer = await self._ask(owner, pod, "POST", "/drain")
        return answer if isinstance(answer, Failure) else None

    async def _ask(
        self,
        owner: SmartSpec,
        pod: Pod,
        method: str,
        path: str,
        body: bytes | None = None,
        patience: ClientTimeout = TIMEOUT,
    ) -> bytes | Failure:
        async with self._slots:
            answer = await self._exchange(owner, pod, method, path, body, patience)
        self._metrics.replica_requests.labels(path, "failed" if isinstance(answer, Failure) else "ok").inc()
        return answer

    async def _exchange(
        self, owner: SmartSpec, pod: Pod, method: str, path: str, body: bytes | None, patience: ClientTimeout
    ) -> bytes | Failure:
        if pod.admin_url is None:
            return Failure("no address yet")
        try:
            # Whatever answers there is somebody's image: it must not send us elsewhere, nor unfold in our memory.
            async with self._session.request(
                method,
                pod.admin_url + path,
                data=body,
                headers={"Accept-Encoding": "identity", **await self._headers(owner)},
                timeout=patience,
                allow_redirects=False,
                auto_decompress=False,
            ) as response:
                answer = await _bounded(response)
                if answer is None:
                    return Failure(f"{path}: the answer is longer than {MAX_ANSWER_BYTES} bytes")
                if 300 <= response.status < 400:
                    return Failure(f"{path}: HTTP {response.status}, and redirects are not followed")
                if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                    return Failure(f"{path}: the answer is compressed ({encoding[:40]}), and nobody asked for that")
                if response.status >= 400:
                    told = f"{path}: HTTP {response.status} {answer[:200].decode(errors='replace')}".rstrip()
                    return Failure(told, is_key_refused=response.status == 401)
                return answer
        except (ClientError, TimeoutError, OSError) as error:
            return Failure(f"{path}: {type(error).__name__} {error}".rstrip(), is_late=isinstance(error, TimeoutError))
        except ValueError:  # what it says of the key is nobody's business
            return Failure(f"{path}: the admin key in Secret {owner.admin_key.name} is no line of text")

    async def _headers(self, owner: SmartSpec) -> dict[str, str]:
        secret = await self._cluster.get("Secret", owner.namespace, owner.admin_key.name)
        data = (secret or {}).get("data", {}).get(owner.admin_key.key)
        return {} if data is None else {"Authorization": f"Bearer {base64.b64decode(data).decode().strip()}"}


async def _bounded(response: ClientResponse) -> bytes | None:
    """The body; None where it is longer than `MAX_ANSWER_BYTES`, and the rest is not read."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            response.close()
            return None
        parts.append(part)
    return b"".join(parts)
