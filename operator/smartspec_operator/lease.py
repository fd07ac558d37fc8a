"""One operator at a time: a Lease of our own, because kopf's peering elects nobody.

The clocks of two machines are never compared: another holder's lease has ended when it has not changed for its whole
duration as measured here.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil
from typing import Any, NoReturn

from smartspec_operator.kube import Api, ApiError
from smartspec_operator.resource import Manifest

log = logging.getLogger(__name__)

RENEWALS = 5
"""How often a lease is renewed, and looked at by those who wait, within its duration."""
DEADLINE = 2 / 3
"""A holder that could not renew for this share of the duration has lost it: it stops while nobody else may begin."""
PATIENCE = 1 / 6
"""The share of the duration that one request may take: a hung one must leave time for others before the deadline."""
PAUSE = 1 / 20
"""The share after which a renewal that failed is tried again. With the above, two hung requests leave a third try."""


class LeaseLostError(Exception):
    """The lease is another's, or may be soon: this process must not act any more."""


class Lease:
    """A Lease object by name; at most one process is between `acquire` and `release` of it.

    *clock* is monotonic, in seconds. `attempted` is when the API server was last asked: a sign of life.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.attempted = clock()
        self._api = api
        self._namespace = namespace
        self._name = name
        self._duration = duration_seconds
        self._clock = clock
        self._renewed = clock()
        self._seen: tuple[str, float] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the API server was asked, or at least tried, lately enough."""
        return self._clock() - self.attempted < max(30.0, 3 * self._duration)

    async def acquire(self) -> None:
        """Wait until the lease is ours, however long the API server is away."""
        told = ""
        while True:
            began = self.attempted = self._clock()
            try:
                holder = await self._try()
            except (ApiError, TimeoutError) as error:
                holder = f"unknown: {str(error) or 'no answer'}"
            if holder == self.identity:
                self._renewed = began
                return
            if holder != told:
                log.info("standing by: the lease %s/%s is held by %s", self._namespace, self._name, holder)
            told = holder
            await asyncio.sleep(self._duration / RENEWALS)

    async def hold(self) -> NoReturn:
        """Renew until cancelled; raises `LeaseLostError` as soon as the lease is lost."""
        pause = self._duration / RENEWALS
        while True:
            await asyncio.sleep(pause)
            began = self.attempted = self._clock()
            left = self._renewed + DEADLINE * self._duration - began
            try:
                async with asyncio.timeout(max(0.0, left)):
                    holder = await self._try()
            except (ApiError, TimeoutError) as error:
                if self._clock() >= self._renewed + DEADLINE * self._duration:
                    raise LeaseLostError(f"could not be renewed: {str(error) or 'no answer'}") from error
                log.warning("the lease was not renewed: %s", str(error) or "no answer")
                pause = self._duration * PAUSE
                continue
            if holder != self.identity:
                raise LeaseLostError(f"is held by {holder}")
            self._renewed, pause = began, self._duration / RENEWALS

    async def release(self) -> None:
        """Give the lease away if it is still ours, so that another need not wait for its end."""
        try:
            async with asyncio.timeout(self._duration / RENEWALS):
                live = await self._api.get("Lease", self._namespace, self._name)
                if live is not None and live["spec"].get("holderIdentity") == self.identity:
                    await self._api.replace(self._manifest(live, holder=""))
        except (ApiError, TimeoutError) as error:
            log.warning("the lease was not released: %s", str(error) or "no answer")

    async def _try(self) -> str:
        """Take or renew the lease where that is allowed; who holds it now. `TimeoutError` when a request hangs."""
        async with asyncio.timeout(self._duration * PATIENCE):
            live = await self._api.get("Lease", self._namespace, self._name)
        if live is None:
            async with asyncio.timeout(self._duration * PATIENCE):
                await self._api.create(self._manifest(None, holder=self.identity))
            return self.identity
        holder = str(live["spec"].get("holderIdentity") or "")
        if holder not in ("", self.identity) and not self._has_ended(live):
            return holder
        # The resource version decides between two that try at once: the later one is refused with 409.
        async with asyncio.timeout(self._duration * PATIENCE):
            await self._api.replace(self._manifest(live, holder=self.identity))
        return self.identity

    def _has_ended(self, live: Manifest) -> bool:
        """Whether the lease has stayed as it is for all of its duration."""
        version, now = str(live["metadata"]["resourceVersion"]), self._clock()
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1] > float(live["spec"].get("leaseDurationSeconds") or self._duration)

    def _manifest(self, live: Manifest | None, *, holder: str) -> Manifest:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # for people; nobody reckons with it
        spec: dict[str, Any] = dict(live["spec"]) if live is not None else {}
        if spec.get("holderIdentity") != holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        spec |= {"holderIdentity": holder, "leaseDurationSeconds": ceil(self._duration), "renewTime": now}
        metadata = live["metadata"] if live is not None else {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
