"""Watching from outside: each replica's counters, as any Prometheus would read them, and the operator's status."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession
from prometheus_client.parser import text_string_to_metric_families

from smartspec import metrics

PERIOD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What replicas count; differences over a time say how that time went."""

    k_sum: float = 0.0
    k_count: float = 0.0
    drafted: float = 0.0
    accepted: float = 0.0
    generated: float = 0.0
    kept: float = 0.0
    step_seconds: float = 0.0
    predicted_tokens: float = 0.0
    predicted_seconds: float = 0.0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    @property
    def mean_k(self) -> float | None:
        """Drafted tokens per decoding request and step."""
        return self.k_sum / self.k_count if self.k_count else None

    @property
    def acceptance(self) -> float | None:
        """Accepted per drafted token."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def goodput(self) -> float | None:
        """Tokens kept per second of step time."""
        return self.kept / self.step_seconds if self.step_seconds else None

    @property
    def predicted_goodput(self) -> float | None:
        """The same, as the policy predicted it before each step."""
        return self.predicted_tokens / self.predicted_seconds if self.predicted_seconds else None


# Each sample that `Counters` adds up, over all labels.
SAMPLES = {
    f"{metrics.SPECULATIVE_TOKENS.name}_sum": "k_sum",
    f"{metrics.SPECULATIVE_TOKENS.name}_count": "k_count",
    metrics.SPEC_DRAFT_TOKENS.name: "drafted",
    metrics.SPEC_ACCEPTED_TOKENS.name: "accepted",
    metrics.GENERATION_TOKENS.name: "generated",
    metrics.TOKENS_KEPT.name: "kept",
    metrics.STEP_SECONDS.name: "step_seconds",
    metrics.PREDICTED_TOKENS.name: "predicted_tokens",
    metrics.PREDICTED_STEP_SECONDS.name: "predicted_seconds",
}


@dataclass(frozen=True, slots=True)
class Scrape:
    """One replica's exposition: its counters, and what it has in hand."""

    counters: Counters
    running: int
    waiting: int


def parse(exposition: str) -> Scrape:
    """Read a replica's `/metrics`."""
    sums = dict.fromkeys(SAMPLES.values(), 0.0)
    gauges = {metrics.NUM_REQUESTS_RUNNING.name: 0.0, metrics.NUM_REQUESTS_WAITING.name: 0.0}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name in SAMPLES:
                sums[SAMPLES[sample.name]] += sample.value
            elif sample.name in gauges:
                gauges[sample.name] += sample.value
    running, waiting = gauges.values()
    return Scrape(Counters(**sums), int(running), int(waiting))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One second: what the replicas did in it, and what the operator last decided."""

    at: float
    phase: str
    counters: Counters
    seconds: float
    running: int
    waiting: int
    replicas: int
    ready_replicas: int
    policy: str
    scaling: str

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all replicas."""
        return self.counters.generated / self.seconds if self.seconds else 0.0


@dataclass
class Monitor:
    """Reads the operator's status file and every replica's metrics once a second; `snapshots` is what it saw."""

    session: ClientSession
    status_file: Path
    clock: Callable[[], float]
    phase: str = "start"
    snapshots: list[Snapshot] = field(default_factory=list)
    _scrapes: dict[str, Scrape] = field(default_factory=dict)

    async def run(self, on_snapshot: Callable[[Snapshot], None]) -> None:
        """Watch until cancelled."""
        before, at = Counters(), self.clock()
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            total = await self.total()
            now = self.clock()
            snapshot = self._snapshot(total - before, now - at)
            before, at = total, now
            self.snapshots.append(snapshot)
            on_snapshot(snapshot)

    async def total(self) -> Counters:
        """The sum over all replicas that there ever were, read now; one that has gone keeps what it last said."""
        for name, url in self.urls().items():
            try:
                async with self.session.get(f"{url}/metrics") as answer:
                    if answer.status == 200:
                        self._scrapes[name] = parse(await answer.text())
            except (ClientError, TimeoutError):
                continue
        return sum((scrape.counters for scrape in self._scrapes.values()), Counters())

    def status(self) -> dict[str, Any]:
        """The operator's status file; empty before it is first written."""
        try:
            found: dict[str, Any] = json.loads(self.status_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found

    def urls(self) -> dict[str, str]:
        """The public URL of each replica that runs, by name."""
        return {pod["name"]: pod["url"] for pod in self.status().get("pods", ()) if pod["url"]}

    def _snapshot(self, counters: Counters, seconds: float) -> Snapshot:
        status = self.status()
        pods = status.get("pods", [])
        alive = [self._scrapes[pod["name"]] for pod in pods if pod["url"] and pod["name"] in self._scrapes]
        return Snapshot(
            at=self.clock(),
            phase=self.phase,
            counters=counters,
            seconds=seconds,
            running=sum(scrape.running for scrape in alive),
            waiting=sum(scrape.waiting for scrape in alive),
            replicas=len(pods),
            ready_replicas=sum(pod["ready"] for pod in pods),
            policy=_policy(status.get("status", {})),
            scaling=_scaling(status.get("status", {})),
        )


def _policy(status: dict[str, Any]) -> str:
    """The last tuning decision and why, in a line."""
    policy = status.get("policy") or {}
    if not policy:
        return ""
    return f"generation {policy.get('generation', 0)}: {policy.get('reason') or 'as the spec says'}"


def _scaling(status: dict[str, Any]) -> str:
    """The last scaling decision and why, in a line."""
    history = status.get("scalingHistory") or []
    if not history:
        return ""
    last = history[-1]
    why = last.get("message") or last.get("reason", "")
    return f"{last.get('fromReplicas', 0)} → {last.get('toReplicas', 0)} replicas: {why}"
