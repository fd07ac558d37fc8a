"""When reconcile runs, and what becomes of its answer: ticks, one lock for each resource, status and Events."""

import asyncio
import logging
import secrets
import time
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NoReturn

import msgspec
from aiohttp import ClientSession

from smartspec_operator import backoff, status
from smartspec_operator.cluster import NotOursError
from smartspec_operator.events import Events, repairs
from smartspec_operator.kube import ApiError, merge_patch
from smartspec_operator.metrics import Metrics
from smartspec_operator.reconcile import look, reconcile
from smartspec_operator.refusals import is_trouble, refusal_reason, spec_field
from smartspec_operator.replicas import AT_ONCE, HttpReplicas
from smartspec_operator.reported import Status, as_manifest
from smartspec_operator.resource import KIND, InvalidSpecError, Manifest, SmartSpec, Spec, parse, readable
from smartspec_operator.resource import previous_status as status_of
from smartspec_operator.snapshot import KubernetesCluster, Snapshot
from smartspec_operator.world import Due, Timing

log = logging.getLogger(__name__)

REFUSED = ("InvalidSpec", "Conflict", "ApplyFailed")
"""Reasons of `Ready` that say that the spec is not carried out."""
WORKERS = 64
"""So many resources are reconciled at once: after a start every child is looked at, and API servers have limits."""


@dataclass
class Pace:
    """When each stage was due last for one resource, and what was seen of it. Lost at a restart without harm.

    `phase`, from 0 to 1, is by how much of a period its stages run apart from those of others. `accepted` is the last
    spec that was carried out.
    """

    phase: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    generation: int = 0
    reconciled: float = 0.0
    tuned: float = 0.0
    scaled: float = 0.0
    refusal: backoff.Refusal | None = None
    accepted: Spec | None = None

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
        self._events = Events(cluster.api)
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
            standing = None if at_once else await _standing_refusal(body, pace, snapshot)
            due = pace.due(time.monotonic(), self._timing, at_once=at_once or metadata["generation"] != pace.generation)
            self._metrics.staged(due)
            began = time.monotonic()
            try:
                if at_once and pace.reconciled:
                    # An event's status is as old as the event: what was reported since would be taken back.
                    body = await self._latest(body)
                if standing is None:
                    result = await self._step(body, snapshot, pace, due)
                else:
                    result = "refused"
                    await self._go_on(body, snapshot, pace, due, standing.reason, standing.message)
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

    async def _step(self, body: Manifest, snapshot: Snapshot, pace: Pace, due: Due) -> str:
        """Reconcile and report; the reason why the spec was refused, or `ok`."""
        now, spec = datetime.now(UTC), None
        try:
            owner = parse(body)
            spec = owner.spec
            new = await self._carry_out(owner, snapshot, due, now)
        except (InvalidSpecError, NotOursError, ApiError) as error:
            told = refusal(error, status_of(body), body["metadata"]["generation"])
            if told is None:
                await self._only_look(body, snapshot, now)
                raise
            if spec is not None and spec == pace.accepted:
                pace.accepted = None  # what was taken once is taken no more
            reason, message = told
            await self._go_on(body, snapshot, pace, due, reason, message)
            seen = await backoff.circumstances(body, snapshot)
            pace.refusal = backoff.refused(reason, seen, pace.refusal, time.monotonic(), message)
            return reason
        pace.accepted, pace.refusal = spec, None
        await self._report(body, new, snapshot, now)
        return "ok"

    async def _carry_out(self, owner: SmartSpec, snapshot: Snapshot, due: Due, now: datetime) -> Status:
        return await reconcile(
            owner,
            snapshot,
            self._replicas(snapshot),
            now=now,
            image=self._image,
            new_key=new_key,
            timing=self._timing,
            due=due,
        )

    def _replicas(self, snapshot: Snapshot) -> HttpReplicas:
        return HttpReplicas(self._session, snapshot, self._metrics, self._slots)

    async def _go_on(self, body: Manifest, snapshot: Snapshot, pace: Pace, due: Due, reason: str, message: str) -> None:
        """Report that the spec is refused, over what becomes of that which runs: it is served by the last good one."""
        now, old, owner = datetime.now(UTC), status_of(body), readable(body)
        seen = None
        if pace.accepted is not None:
            try:
                last = msgspec.structs.replace(owner, spec=pace.accepted)
                seen = status.observed(old, await self._carry_out(last, snapshot, due, now))
            except (InvalidSpecError, NotOursError, ApiError) as error:
                log.info("%s/%s: nor can the last spec be carried out: %s", owner.namespace, owner.name, error)
                if not isinstance(error, ApiError) or refusal_reason(error.status, str(error)) is not None:
                    pace.accepted = None
        if seen is None:
            seen = await self._look(owner, snapshot, now)
        generation = body["metadata"]["generation"]
        new = status.refused(old, reason, message, seen=seen, generation=generation, now=now)
        await self._report(body, new, snapshot, now)

    async def _only_look(self, body: Manifest, snapshot: Snapshot, now: datetime) -> None:
        """Report what is seen while the API server fails to take what would be written."""
        seen = await self._look(readable(body), snapshot, now)
        await self._report(body, status_of(body) if seen is None else seen, snapshot, now)

    async def _look(self, owner: SmartSpec, snapshot: Snapshot, now: datetime) -> Status | None:
        """What is seen of it; None where the API server does not tell."""
        try:
            return await look(owner, snapshot, self._replicas(snapshot), now=now)
        except ApiError as error:
            log.info("%s/%s: cannot be looked at: %s", owner.namespace, owner.name, error)
            return None

    async def _report(self, body: Manifest, new: Status, snapshot: Snapshot, now: datetime) -> None:
        """Write what changed in the status, and nothing when nothing did; tell what happened."""
        metadata, old = body["metadata"], status_of(body)
        found = repairs(body, snapshot)
        try:
            if patch := merge_patch(body.get("status") or {}, as_manifest(new)):
                patch = {"status": patch}
                await self._cluster.api.patch(KIND, metadata["namespace"], metadata["name"], patch, "status")
            self._metrics.decided(old, new)
            found = [*status.news(old, new), *found]
        finally:  # what was repaired nobody tells later
            await self._events.tell(body, found, now)


async def _standing_refusal(body: Manifest, pace: Pace, snapshot: Snapshot) -> backoff.Refusal | None:
    """That it was refused, where neither time nor anything that counts has passed since."""
    if pace.refusal is None or time.monotonic() >= pace.refusal.until:
        return None
    try:
        same = pace.refusal.circumstances == await backoff.circumstances(body, snapshot)
    except ApiError:  # let the reconcile itself tell
        return None
    return pace.refusal if same else None


def refusal(error: Exception, old: Status, generation: int) -> tuple[str, str] | None:
    """Reason and message where the resource cannot be as it is wished; None where it is already, and only kept so."""
    if isinstance(error, InvalidSpecError):
        return "InvalidSpec", str(error)
    if isinstance(error, NotOursError):
        return "Conflict", str(error)
    if not isinstance(error, ApiError):
        raise error
    if (reason := refusal_reason(error.status, str(error))) is not None:
        return reason, spec_field(str(error))
    ready = old.condition("Ready")
    is_new = ready is None or old.observed_generation != generation or ready.reason in REFUSED
    if is_new and is_trouble(error.status):
        return "ApplyFailed", f"the API server, or a webhook that it asks, fails: {error}"
    return None


def new_key() -> str:
    """A fresh admin key."""
    return secrets.token_urlsafe(32)
