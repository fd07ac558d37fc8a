"""What a person reads in `kubectl describe`: Events, one for each thing that happens, however often it does."""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from smartspec_operator.cluster import controller_of
from smartspec_operator.contest import CONTESTED_TIMES
from smartspec_operator.foreign import shown
from smartspec_operator.kube import Api, ApiError
from smartspec_operator.resource import FIELD_MANAGER, GROUP, KIND, VERSION, Manifest
from smartspec_operator.snapshot import Repair, Snapshot
from smartspec_operator.status import News
from smartspec_operator.world import timestamp

log = logging.getLogger(__name__)

AGAIN_SECONDS = 600.0
"""What happens again within so long is counted in the Event that told of it last. API servers keep one for an hour."""
LONGEST_NAME = 230

Key = tuple[str, str, str]
"""What an Event is about: uid, reason, message."""


@dataclass(frozen=True)
class Posted:
    """An Event that stands: its name, how often it was told, and when last (monotonic, in seconds)."""

    name: str
    count: int
    at: float


class Events:
    """Posts, and counts what is told again. What it remembers is lost at a restart without harm."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._posted: dict[Key, Posted] = {}

    async def tell(self, body: Manifest, found: Sequence[News], now: datetime) -> None:
        """Log *found*, and post it on *body*."""
        metadata = body["metadata"]
        for news in found:
            log.info("%s/%s: %s: %s", metadata["namespace"], metadata["name"], news.reason, news.message)
            try:
                await self._post(body, news, now)
            except ApiError as error:  # not worth failing for: the status says the same
                log.warning("Event %s was not posted: %s", news.reason, error)

    async def _post(self, body: Manifest, news: News, now: datetime) -> None:
        key, moment = (body["metadata"]["uid"], news.reason, news.message), time.monotonic()
        self._posted = {known: last for known, last in self._posted.items() if moment - last.at < AGAIN_SECONDS}
        last = self._posted.get(key)
        if last is not None and await self._count(body, last, now):
            self._posted[key] = Posted(last.name, last.count + 1, moment)
            return
        name = f"{body['metadata']['name'][:LONGEST_NAME]}.{secrets.token_hex(8)}"
        await self._api.create(event(body, news, name, now))
        self._posted[key] = Posted(name, 1, moment)

    async def _count(self, body: Manifest, last: Posted, now: datetime) -> bool:
        """Whether the Event that stands could be told once more; not where it is gone, or may only be made."""
        patch = {
            "kind": "Event",
            "metadata": {"name": last.name, "namespace": body["metadata"]["namespace"]},
            "count": last.count + 1,
            "lastTimestamp": timestamp(now),
        }
        try:
            await self._api.merge(patch)
        except ApiError as error:
            if error.status in (403, 404):
                return False
            raise
        return True


def event(body: Manifest, news: News, name: str, now: datetime) -> Manifest:
    """An Event on *body*, told for the first time."""
    metadata = body["metadata"]
    about = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}
    about |= {key: metadata[key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": about,
        "type": news.type,
        "reason": news.reason,
        "message": news.message[:1024],
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }


def repairs(body: Manifest, snapshot: Snapshot) -> list[News]:
    """What others had done to the children of *body*, and was undone."""
    return [told(repair) for repair in snapshot.repaired if controller_of(repair.child) == body["metadata"]["uid"]]


def told(repair: Repair) -> News:
    """A repair for people: what was changed, and, where that happens again and again, by whom it may be."""
    contest, name = repair.contest, f"{repair.child['kind']} {repair.child['metadata']['name']}"
    if contest is None:
        return News("Normal", "Repaired", f"{name} was deleted, and is there again")
    message = f"{name} was changed at {shown(contest.paths)}, and is as it was"
    if contest.times < CONTESTED_TIMES:
        return News("Normal", "Repaired", message)
    writers = ", ".join(repair.managers) or "unknown"
    message += (
        f": {contest.times} times by now, others who write to it: {writers}; let be for {contest.wait_seconds:g} s"
    )
    return News("Warning", "Contested", message)
