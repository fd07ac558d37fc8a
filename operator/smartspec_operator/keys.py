"""The Secrets with the keys of ports: read by name and seldom, made where there is none, and never written again."""

import time

from smartspec_operator.cluster import NotOursError, controller_of
from smartspec_operator.kube import Api, ApiError
from smartspec_operator.resource import Manifest

SECRET_SECONDS = 15.0
"""How long a Secret that was read is trusted: it changes rarely, and is read by name, one request each."""
MISSING_SECONDS = 5.0
"""The same for one that was not there: somebody is about to make it."""

Place = tuple[str, str]
"""A Secret: namespace, name."""


class Secrets:
    """What was read lately, by a monotonic clock: no Secret is ever listed or watched."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._read: dict[Place, tuple[float, Manifest | None]] = {}
        self._lost: set[Place] = set()

    async def get(self, namespace: str, name: str) -> Manifest | None:
        """A Secret by name, at most `SECRET_SECONDS` old."""
        place = namespace, name
        known: Manifest | None = None
        if (held := self._read.get(place)) is not None:
            read, known = held
            if time.monotonic() - read < (MISSING_SECONDS if known is None else SECRET_SECONDS):
                return known
        live = await self._api.get("Secret", *place)
        if known is not None and live is None:
            self._lost.add(place)
        self._read[place] = (time.monotonic(), live)
        return live

    async def has_key(self, namespace: str, name: str, key: str) -> bool | None:
        """Whether there is a Secret with this key; None where we have no right to know."""
        try:
            live = await self.get(namespace, name)
        except ApiError as error:
            if error.status == 403:
                return None
            raise
        return live is not None and key in live.get("data", {})

    async def create(self, manifest: Manifest) -> bool:
        """Make it unless there is one; whether that brought one back that had been there.

        Raises `NotOursError` when there is one and its controller is not the manifest's.
        """
        place = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        try:
            await self._api.create(manifest)
        except ApiError as error:
            if error.status != 409:
                raise
        live = await self._api.get("Secret", *place)
        if live is not None and controller_of(live) != controller_of(manifest):
            raise NotOursError(f"Secret {place[1]} exists and is not controlled by this SmartSpec")
        self._read[place] = (time.monotonic(), live)
        was_lost = place in self._lost
        self._lost.discard(place)
        return was_lost

    def forget(self) -> None:
        """Drop those that nobody asked for again when they were trusted no more: then it shows what has gone."""
        oldest = time.monotonic() - 2 * SECRET_SECONDS
        self._read = {place: held for place, held in self._read.items() if held[0] >= oldest}
        self._lost &= self._read.keys()
