"""What to send and when: the command line's wishes as a list of jobs, decided before anything is sent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from smartspec.config import ConfigError
from smartspec.loadgen.arrivals import Phase, poisson
from smartspec.loadgen.client import Job
from smartspec.loadgen.recorded import Arrival

DEFAULT_REQUESTS = 64
CHARACTERS_PER_TOKEN = 4
"""Roughly, of English text and code: how long a prompt is made when only its tokens are known."""


@dataclass(frozen=True)
class Mode:
    """A way of speculating that a server is asked for, by the name it has on the command line."""

    name: str
    field: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """The jobs of one run. *clients* at once, each sending its next when it is answered, until *seconds* are over; or,
    when *clients* is None, each job when it is due, whatever became of the others.

    *num_jobs* are sent, going through *jobs* over and over with new numbers; None: each of them once.
    """

    jobs: tuple[Job, ...]
    clients: int | None
    seconds: float | None
    described: str
    num_jobs: int | None = None

    def __len__(self) -> int:
        return len(self.jobs) if self.num_jobs is None else self.num_jobs

    def __iter__(self) -> Iterator[Job]:
        """What is to be sent, in order; made on the way, for an hour of many clients has room for millions."""
        return (replace(job, number=number) for number, job in enumerate(islice(cycle(self.jobs), len(self))))


def modes_of(text: str) -> tuple[Mode, ...]:
    """The modes in `off,fixed:4,auto`; raises ConfigError."""
    modes = tuple(_mode(name.strip()) for name in text.split(","))
    if len({mode.name for mode in modes}) < len(modes):
        raise ConfigError(f"compare: a mode is named twice in {text!r}")
    return modes


def _mode(name: str) -> Mode:
    kind, _, tokens = name.partition(":")
    if kind not in ("off", "auto", "fixed") or (kind == "off" and tokens) or (kind == "fixed" and not tokens):
        raise ConfigError(f"compare: {name!r} is none of off, auto, auto:N and fixed:N")
    if not tokens:
        return Mode(name, {"mode": kind})
    if not tokens.isdecimal() or not 0 <= int(tokens) <= 32:
        raise ConfigError(f"compare: {name!r}: the number of tokens must be from 0 to 32")
    return Mode(name, {"mode": kind, "max_tokens": int(tokens)})


def closed(prompts: Sequence[str], *, clients: int, requests: int | None, seconds: float | None, tokens: int) -> Plan:
    """*clients* at once until *requests* are answered or *seconds* are over."""
    if requests is None and seconds is None:
        requests = DEFAULT_REQUESTS
    # More than any server answers in the time: those that are not sent are not made either.
    count = requests if requests is not None else max(1000, round((seconds or 0) * clients * 100))
    jobs = tuple(Job(number, 0.0, prompt, tokens) for number, prompt in enumerate(prompts))
    return Plan(jobs, clients, seconds, f"{clients} client{'s' if clients > 1 else ''} at once", count)


def paced(
    prompts: Sequence[str], *, rate: float, requests: int | None, seconds: float | None, tokens: int, seed: int
) -> Plan:
    """Poisson arrivals of *rate* requests a second."""
    count = DEFAULT_REQUESTS if requests is None and seconds is None else requests
    lasts = min(limit for limit in (seconds, None if count is None else count / rate) if limit is not None)
    times = poisson([Phase(rate, lasts)], seed)
    if not times:
        raise ConfigError(f"rate: {rate:g} requests a second bring none in {lasts:g} s")
    jobs = tuple(
        Job(n, time, prompt, tokens) for n, (time, prompt) in enumerate(zip(times, cycle(prompts), strict=False))
    )
    return Plan(jobs, None, None, f"{rate:g} requests a second (Poisson)")


def replayed(
    arrivals: Sequence[Arrival],
    prompts: Sequence[str],
    *,
    speed: float,
    requests: int | None,
    seconds: float | None,
    tokens: int,
) -> Plan:
    """Recorded *arrivals*, *speed* times as fast, with their own lengths where they are known."""
    jobs = [
        Job(number, arrival.time / speed, _prompt(arrival, prompt), arrival.output_tokens or tokens)
        for number, (arrival, prompt) in enumerate(zip(arrivals, cycle(prompts), strict=False))
        if seconds is None or arrival.time / speed <= seconds
    ]
    faster = "" if speed == 1 else f", {speed:g} times as fast"
    return Plan(tuple(jobs[:requests]), None, None, f"a recorded trace{faster}")


def _prompt(arrival: Arrival, prompt: str) -> str:
    if arrival.prompt is not None:
        return arrival.prompt
    if arrival.prompt_tokens is None:
        return prompt
    length = max(1, arrival.prompt_tokens * CHARACTERS_PER_TOKEN)
    return (prompt * (length // len(prompt) + 1))[:length]
