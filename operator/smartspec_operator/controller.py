"""When reconcile runs, and what becomes of its answer: ticks, one lock for each resource, status and Events."""

import asyncio
import logging
import secrets
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

from aiohttp import ClientSession

from smartspec_operator import backoff, status
from smartspec_operator.cluster import NotOursError, controller_of
from smartspec_operator.contest import CONTESTED_TIMES
from smartspec_operator.foreign import shown
from smartspec_operator.kube import Api, ApiError, merge_patch
from smartspec_operator.metrics import Metrics
from smartspec_operator.reconcile import reconcile
from smartspec_operator.refusals import refusal_reason, spec_field
from smartspec_operator.replicas import AT_ONCE, HttpReplicas
from smartspec_operator.reported import Status, as_manifest
from smartspec_operator.resource import FIELD_MANAGER, GROUP, KIND, VERSION, InvalidSpecError, Manifest, parse
from smartspec_operator.resource import previous_status as status_of
from smartspec_operator.snapshot import KubernetesCluster, Repair, Snapshot
from smartspec_operator.world import Due, Timing, timestamp

log = logging.getLogger(__name__)

WORKERS = 64
"""So many resources are reconciled at once: after a start every child is looked at, and API servers have limits."""


@dataclass
class Pace:
    """When each stage was due last for one resource, and what was seen of it. Lost at a restart without harm.

    `phase`, from 0 to 1, is by how much of a period its stages run apart from those of others.
    """

    phase: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    generation: int = 0
    reconciled: float = 0.0
    tuned: float = 0.0
    scaled: float = 0.0
    refusal: backoff.Refusal | None = None

    def due(self, now: float, timing: Timing, *, at_once: bool) -> Due:
        """The stages whose period has passed; both, after an edit. Scaling brings tuning with it."""
        if not self.tuned:  # the first ones of many resources come together, and the next ones need not
            self.scaled = self.tuned = now - self.phase * timing.tuning_seconds
            return Due()
        scaling = at_once or now - self.scaled >= timing.scaling_seconds
        tuning = scaling or now - self.tuned >= timing.tuning_seconds
        if tuning:
            self.tuned = _next(self.tuned, now, timing.tuning_seconds)
        if scaling:
            self.scaled = _next(self.scaled, now, timing.scaling_seconds)
        return Due(tuning=tuning, scaling=scaling)


def _next(before: float, now: float, period: float) -> float:
    """From when the next period counts: its own time where a tick came a little late, or periods would grow by that."""
    return before + period if 0 <= now - before - period < period / 2 else now


class Controller:
    """Reconciles all resources every tick, and one at once when it was edited."""

    def __init__(
        self, cluster: KubernetesCluster, session: ClientSession, metrics: Metrics, *, image: str, timing: Timing
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._workers = asyncio.Semaphore(WORKERS)
        self._session = session
        self._image = image
        self._timing = timing
        self._paces: dict[str, Pace] = {}
        self._edits: dict[str, Manifest] = {}
        self._has_edits = asyncio.Event()
        self.moved: float | None = None

    @property
    def is_alive(self) -> bool:
        """Whether a reconcile or a tick ended lately enough; kopf's own probe stays green when its watches are dead.

        What the API server failed has ended too, and where that is slow a tick over many resources takes long: a
        restart here would mend neither, and begin all of it anew.
        """
        limit = max(30.0, 10 * self._timing.tick_seconds)
        return self.moved is None or time.monotonic() - self.moved < limit

    async def run(self) -> None:
        """Tick, and answer edits between ticks, until cancelled."""
        self.moved = time.monotonic()
        await asyncio.gather(self._tick_forever(), self._answer_edits())

    async def _tick_forever(self) -> NoReturn:
        """A tick that fails is told, and the next one tries again."""
        while True:
            started = time.monotonic()
            try:
                with self._metrics.tick_seconds.time():
                    await self.tick()
            except ApiError as error:
                log.warning("tick failed: %s", error)
            self.moved = ended = time.monotonic()
            await asyncio.sleep(max(0.1, self._timing.tick_seconds - (ended - started)))

    async def tick(self) -> None:
        """Reconcile every resource once, concurrently, from one snapshot."""
        snapshot = self._cluster.snapshot()
        bodies = await self._cluster.api.list(KIND, self._cluster.namespace)
        self._metrics.resources.set(len(bodies))
        gone = self._paces.keys() - {body["metadata"]["uid"] for body in bodies}
        for uid in gone:
            if not self._paces[uid].lock.locked():
                del self._paces[uid]
        self._cluster.forget(gone)
        await asyncio.gather(*(self._reconcile(body, snapshot, at_once=False) for body in bodies))

    def edited(self, body: Manifest) -> None:
        """Have one resource reconciled now, unless this generation of it is known already."""
        if body["metadata"]["generation"] != self._pace(body).generation:
            self._edits[body["metadata"]["uid"]] = body
            self._has_edits.set()

    async def _answer_edits(self) -> NoReturn:
        """Reconcile what was edited: all that came meanwhile together, for each snapshot lists everything there is."""
        while True:
            await self._has_edits.wait()
            self._has_edits.clear()
            bodies, self._edits = list(self._edits.values()), {}
            snapshot = self._cluster.snapshot()
            await asyncio.gather(*(self._reconcile(body, snapshot, at_once=True) for body in bodies))

    def _pace(self, body: Manifest) -> Pace:
        uid = body["metadata"]["uid"]
        return self._paces.setdefault(uid, Pace(zlib.crc32(uid.encode()) / 2**32))

    async def _reconcile(self, body: Manifest, snapshot: Snapshot, *, at_once: bool) -> None:
        metadata = body["metadata"]
        pace = self._pace(body)
        async with pace.lock, self._workers:
            # What others did since this snapshot began is not in it, and must not be undone by it.
            if pace.reconciled > snapshot.started or metadata["generation"] < pace.generation:
                return
            if "deletionTimestamp" in metadata or (at_once and metadata["generation"] == pace.generation):
                return
            if not at_once and await _is_refused_still(body, pace, snapshot):
                pace.reconciled = self.moved = time.monotonic()
                return
            due = pace.due(time.monotonic(), self._timing, at_once=at_once or metadata["generation"] != pace.generation)
            self._metrics.staged(due)
            began = time.monotonic()
            try:
                if at_once and pace.reconciled:
                    # An event's status is as old as the event: what was reported since would be taken back.
                    body = await self._latest(body)
                result = await self._step(body, snapshot, due)
                await _remember(result, body, pace, snapshot)
                pace.generation = body["metadata"]["generation"]
            except ApiError as error:
                result = "unreachable"
                log.warning("%s/%s: %s", metadata["namespace"], metadata["name"], error)
            except Exception:  # one resource's fault must not stop the others' ticks
                result = "defect"
                self._metrics.errors.inc()
                log.exception("%s/%s: reconcile failed", metadata["namespace"], metadata["name"])
            finally:
                pace.reconciled = self.moved = time.monotonic()
            self._metrics.reconciles.labels(result).inc()
            self._metrics.reconcile_seconds.observe(pace.reconciled - began)

    async def _latest(self, body: Manifest) -> Manifest:
        """The resource as it is now; raises `ApiError` when it is gone."""
        metadata = body["metadata"]
        live = await self._cluster.api.get(KIND, metadata["namespace"], metadata["name"])
        if live is None or live["metadata"]["uid"] != metadata["uid"] or "deletionTimestamp" in live["metadata"]:
            raise ApiError(404, "was deleted meanwhile")
        return live

    async def _step(self, body: Manifest, snapshot: Snapshot, due: Due) -> str:
        """Reconcile and report; the reason why the spec was refused, or `ok`."""
        now, old, generation = datetime.now(UTC), status_of(body), body["metadata"]["generation"]
        refused = None
        try:
            new = await reconcile(
                parse(body),
                snapshot,
                HttpReplicas(self._session, snapshot, self._metrics, self._slots),
                now=now,
                image=self._image,
                new_key=new_key,
                timing=self._timing,
                due=due,
            )
        except InvalidSpecError as error:
            refused = ("InvalidSpec", str(error))
        except NotOursError as error:
            refused = ("Conflict", str(error))
        except ApiError as error:
            if (reason := refusal_reason(error.status, str(error))) is None:
                await self._tell(body, repairs(body, snapshot), now)  # what was repaired before it, nobody tells later
                raise
            refused = (reason, spec_field(str(error)))
        if refused is not None:
            new = status.refused(old, *refused, generation=generation, now=now)
        await self._report(body, old, new, snapshot, now)
        return "ok" if refused is None else refused[0]

    async def _report(self, body: Manifest, old: Status, new: Status, snapshot: Snapshot, now: datetime) -> None:
        """Write what changed in the status, and nothing when nothing did."""
        metadata = body["metadata"]
        if patch := merge_patch(body.get("status") or {}, as_manifest(new)):
            patch = {"status": patch}
            await self._cluster.api.patch(KIND, metadata["namespace"], metadata["name"], patch, "status")
        self._metrics.decided(old, new)
        await self._tell(body, [*status.news(old, new), *repairs(body, snapshot)], now)

    async def _tell(self, body: Manifest, found: Sequence[status.News], now: datetime) -> None:
        metadata = body["metadata"]
        for news in found:
            log.info("%s/%s: %s: %s", metadata["namespace"], metadata["name"], news.reason, news.message)
            await post(self._cluster.api, body, news, now)


async def _is_refused_still(body: Manifest, pace: Pace, snapshot: Snapshot) -> bool:
    """Whether it was refused, and neither time nor anything that counts has passed since."""
    if pace.refusal is None or time.monotonic() >= pace.refusal.until:
        return False
    try:
        return pace.refusal.circumstances == await backoff.circumstances(body, snapshot)
    except ApiError:  # let the reconcile itself tell
        return False


async def _remember(result: str, body: Manifest, pace: Pace, snapshot: Snapshot) -> None:
    """Keep in mind that *body* was refused, and under which circumstances; forget it when it was not."""
    if result == "ok":
        pace.refusal = None
    else:
        seen = await backoff.circumstances(body, snapshot)
        pace.refusal = backoff.refused(result, seen, pace.refusal, time.monotonic())


def repairs(body: Manifest, snapshot: Snapshot) -> list[status.News]:
    """What others had done to the children of *body*, and was undone."""
    return [told(repair) for repair in snapshot.repaired if controller_of(repair.child) == body["metadata"]["uid"]]


def told(repair: Repair) -> status.News:
    """A repair for people: what was changed, and, where that happens again and again, by whom it may be."""
    contest, name = repair.contest, f"{repair.child['kind']} {repair.child['metadata']['name']}"
    if contest is None:
        return status.News("Normal", "Repaired", f"{name} was deleted, and is there again")
    message = f"{name} was changed at {shown(contest.paths)}, and is as it was"
    if contest.times < CONTESTED_TIMES:
        return status.News("Normal", "Repaired", message)
    writers = ", ".join(repair.managers) or "unknown"
    message += (
        f": {contest.times} times by now, others who write to it: {writers}; let be for {contest.wait_seconds:g} s"
    )
    return status.News("Warning", "Contested", message)


async def post(api: Api, body: Manifest, news: status.News, now: datetime) -> None:
    """An Event on *body*. One that cannot be posted is not worth failing for: the status says the same."""
    metadata = body["metadata"]
    about = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}
    about |= {key: metadata[key] for key in ("name", "namespace", "uid")}
    event: Mapping[str, Any] = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}-", "namespace": metadata["namespace"]},
        "involvedObject": about,
        "type": news.type,
        "reason": news.reason,
        "message": news.message[:1024],
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }
    try:
        await api.create(event)
    except ApiError as error:
        log.warning("Event %s was not posted: %s", news.reason, error)


def new_key() -> str:
    """A fresh admin key."""
    return secrets.token_urlsafe(32)
