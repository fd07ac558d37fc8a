"""The load generator: one event loop that sends completions and times them, and weighs its own share of the machine.

Answers are not streamed: what is measured is the time to the whole text, and reading a chunk per token for dozens of
requests at once would take from the cores that the server under test needs.
"""

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from yarl import URL

REQUEST_SECONDS = 300.0
MODEL = "model"
"""The name under which every server here serves."""


class LoadError(Exception):
    """A request that did not bring what it was sent for: the run is worth nothing."""


@dataclass(frozen=True)
class Job:
    """One request: when it arrives (seconds from the run's start), what it asks for."""

    arrival: float
    prompt: str
    tokens: int
    temperature: float = 0.0


@dataclass
class Run:
    """What a run brought. Latencies in seconds, in the order of the jobs, from the moment a request was due: a late
    generator does not flatter a server; *lateness* is how late it was at worst.

    *client_cpu_seconds* went to the generator itself; *stolen_seconds* to other tenants of the host, over all cores.
    """

    latencies: list[float] = field(default_factory=list)
    lateness: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    stolen_seconds: float = 0.0

    @property
    def mean_latency(self) -> float:
        """Mean seconds from due to whole."""
        return sum(self.latencies) / len(self.latencies)

    @property
    def tokens_per_second(self) -> float:
        """Output tokens per second from the first request due to the last answered."""
        return self.tokens / self.seconds


async def open_loop(url: URL, jobs: Sequence[Job]) -> Run:
    """Send each job when it is due, whatever became of the others: all at 0 is a saturated batch."""
    async with _session() as session:
        with _weighed() as run:
            started = time.perf_counter()
            done = await asyncio.gather(*(_when_due(session, url, job, started) for job in jobs))
            run.seconds = time.perf_counter() - started
    run.latencies = [latency for latency, _ in done]
    run.lateness = max(late for _, late in done)
    run.tokens = sum(job.tokens for job in jobs)
    return run


async def closed_loop(url: URL, jobs: Sequence[Job], concurrency: int = 1) -> Run:
    """Send the next job when an earlier one is answered, *concurrency* at once."""
    left: Iterator[tuple[int, Job]] = iter(enumerate(jobs))
    latencies = [0.0] * len(jobs)

    async def client(session: ClientSession) -> None:
        for index, job in left:
            latencies[index] = await _complete(session, url, job)

    async with _session() as session:
        with _weighed() as run:
            started = time.perf_counter()
            await asyncio.gather(*(client(session) for _ in range(concurrency)))
            run.seconds = time.perf_counter() - started
    run.latencies = latencies
    run.tokens = sum(job.tokens for job in jobs)
    return run


async def _when_due(session: ClientSession, url: URL, job: Job, started: float) -> tuple[float, float]:
    if (wait := started + job.arrival - time.perf_counter()) > 0:
        await asyncio.sleep(wait)
    late = max(0.0, time.perf_counter() - started - job.arrival)
    return late + await _complete(session, url, job), late


async def _complete(session: ClientSession, url: URL, job: Job) -> float:
    body: dict[str, Any] = {
        "model": MODEL,
        "prompt": job.prompt,
        "max_tokens": job.tokens,
        "temperature": job.temperature,
        "ignore_eos": True,
        "cache_salt": uuid.uuid4().hex,  # modes meet the same prompts: none may find them computed already
    }
    started = time.perf_counter()
    try:
        async with session.post(url / "v1/completions", json=body) as answer:
            data = await answer.json(content_type=None)
            if answer.status != 200:
                raise LoadError(f"HTTP {answer.status}: {str(data)[:300]}")
    except (ClientError, TimeoutError, ValueError) as error:
        raise LoadError(f"{type(error).__name__}: {error}") from error
    latency = time.perf_counter() - started
    if (got := data["usage"]["completion_tokens"]) != job.tokens:
        raise LoadError(f"asked for {job.tokens} tokens, got {got}")
    return latency


def _session() -> ClientSession:
    return ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=REQUEST_SECONDS))


@contextmanager
def _weighed() -> Iterator[Run]:
    run = Run()
    cpu, stolen = time.process_time(), _stolen_ticks()
    yield run
    run.client_cpu_seconds = time.process_time() - cpu
    run.stolen_seconds = (_stolen_ticks() - stolen) / 100


def _stolen_ticks() -> int:
    """Hundredths of a second in which the hypervisor ran somebody else (proc(5), `steal`)."""
    try:
        return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    except (OSError, IndexError):
        return 0
