"""The story in five phases: idle, busy, flooded, measured under flood, idle again.

Every comparison is made here and now: two ways of serving the same prompts on the same replicas, taking turns, so
that whatever else the machine does weighs on both alike.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from smartspec_demo.load import Clients, Mode
from smartspec_demo.monitor import Counters, Monitor


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Script:
    """How much of everything; seconds and tokens. The maxima keep a slow machine within the demo's four minutes, and
    `max_seconds` counts from the start of the demo, the first replica's included.
    """

    idle_pairs: int = 8
    idle_tokens: int = 64
    idle_max_seconds: float = 40.0
    busy_seconds: float = 8.0
    busy_clients: int = 3
    flood_clients: int = 72
    flood_tokens: int = 48
    flood_min_seconds: float = 15.0
    flood_max_seconds: float = 70.0
    flood_settle: float = 4.0
    slice_rounds: int = 3
    slice_tokens: tuple[int, ...] = (16, 20, 24, 28, 32)
    slice_seconds: float = 6.0
    slice_max_settle: float = 10.0
    compare_max_seconds: float = 95.0
    calm_max_seconds: float = 60.0
    calm_pause: float = 1.0
    calm_settle: float = 3.0
    max_seconds: float = 240.0


MODES: tuple[Mode, ...] = ("off", "request", "fixed")


@dataclass(frozen=True)
class Phase:
    """A phase that has passed: from *start* to *end*, seconds since the demo began."""

    name: str
    title: str
    start: float
    end: float


@dataclass
class Course:
    """What the scenario measured itself; requests are in the clients' samples, seconds in the monitor's snapshots.

    `idle` adds up what replicas counted during idle requests under `request`. `slices` holds, by mode, the tokens kept
    per second of each slice of the flood; the slices of one round stand at the same place.
    """

    phases: list[Phase] = field(default_factory=list)
    idle: Counters = field(default_factory=Counters)
    flood: Counters = field(default_factory=Counters)
    slices: dict[Mode, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})


@dataclass
class Scenario:
    """Plays *script* with *clients* under the eyes of *monitor*."""

    clients: Clients
    monitor: Monitor
    script: Script
    clock: Callable[[], float]
    course: Course = field(default_factory=Course)
    _mode: Mode = "request"

    async def play(self) -> Course:
        """All phases, one after the other, or as far as they come in time: the summary says what was missed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self.script.max_seconds - self.clock(), 0.0)):
                await self._phase("idle", "idle", self._idle)
                await self._phase("busy", "busy", self._busy)
                await self._phase("flood", "flood", self._flood)
                await self._phase("compare", "flood, mode by mode", self._compare)
                await self._phase("calm", "idle again", self._calm)
        return self.course

    async def _phase(self, name: str, title: str, play: Callable[[], Awaitable[None]]) -> None:
        self.monitor.phase = name
        start = self.clock()
        try:
            await play()
        finally:
            self.course.phases.append(Phase(name, title, start, self.clock()))

    async def _idle(self) -> None:
        """One request at a time: the same prompt with and without speculation, each going first every other time."""
        prompts, script = self.clients.prompts(), self.script
        # Its first request pays for what is done once (compiled kernels, touched pages): it belongs to neither side.
        first = await self.clients.complete(next(prompts), phase="warm-up", mode="request", max_tokens=16)
        if first.error:
            raise DemoError(f"the first request failed: {first.error}")
        started = self.clock()
        for pair in range(script.idle_pairs):
            if pair >= 2 and self.clock() - started > script.idle_max_seconds:
                break
            prompt = next(prompts)
            modes: tuple[Mode, Mode] = ("off", "request") if pair % 2 else ("request", "off")
            for mode in modes:
                before = await self.monitor.total()
                await self.clients.complete(prompt, phase="idle", mode=mode, max_tokens=script.idle_tokens)
                if mode == "request":
                    self.course.idle += await self.monitor.total() - before

    async def _busy(self) -> None:
        """A handful of clients."""
        async with self._clients("busy", self.script.busy_clients, self.script.flood_tokens):
            await asyncio.sleep(self.script.busy_seconds)

    async def _flood(self) -> None:
        """Far more clients than one replica serves well, until a second one is ready."""
        script = self.script
        before = await self.monitor.total()
        async with self._clients("flood", script.flood_clients, script.flood_tokens):
            await asyncio.sleep(script.flood_min_seconds)
            await self._until(lambda: self._ready() >= 2, script.flood_max_seconds - script.flood_min_seconds)
            await asyncio.sleep(script.flood_settle)
            # What it counted until here is the flood as one replica met it, and the new one's first requests.
            self.course.flood += await self.monitor.total() - before

    async def _compare(self) -> None:
        """One flood that never ebbs, its new requests in each mode in turn, each mode going first in one round."""
        script, started, done = self.script, self.clock(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(
                self.clients.keep_up(
                    script.flood_clients,
                    done,
                    phase="compare",
                    max_tokens=script.slice_tokens,
                    mode=lambda: self._mode,
                )
            )
            for turn in range(script.slice_rounds):
                if turn and (self.clock() - started) * (turn + 1) / turn > script.compare_max_seconds:
                    break
                speeds = {mode: await self._slice(mode) for mode in MODES[turn % 3 :] + MODES[: turn % 3]}
                for mode, speed in speeds.items():
                    self.course.slices[mode].append(speed)
            done.set()

    async def _slice(self, mode: Mode) -> float:
        """Tokens kept per second when all that is in flight is of *mode*: the end of one burst and the beginning of
        the next would say how a mode fills and empties the replicas, not how it stands a flood."""
        script, self._mode = self.script, mode
        await self._until(
            lambda: self.clients.in_flight[mode] == self.clients.in_flight.total(), script.slice_max_settle
        )
        before, started = await self.monitor.total(), self.clock()
        await asyncio.sleep(script.slice_seconds)
        during, seconds = await self.monitor.total() - before, self.clock() - started
        if mode == "request":
            self.course.flood += during
        return during.kept / seconds

    async def _calm(self) -> None:
        """A single client, until the second replica has gone."""
        script = self.script
        async with self._clients("calm", 1, script.idle_tokens, pause=script.calm_pause):
            await self._until(lambda: len(self.monitor.urls()) <= 1, script.calm_max_seconds)
            await asyncio.sleep(script.calm_settle)

    @asynccontextmanager
    async def _clients(
        self, phase: str, concurrency: int, max_tokens: int, *, pause: float = 0.0
    ) -> AsyncIterator[None]:
        """Clients that come again and again meanwhile; at the end their last requests are finished."""
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.clients.keep_up(concurrency, done, phase=phase, max_tokens=max_tokens, pause=pause))
            yield
            done.set()

    def _ready(self) -> int:
        return sum(pod["ready"] for pod in self.monitor.status().get("pods", ()))

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Return when *condition* holds, or after *seconds* all the same: the summary says what was missed."""
        deadline = self.clock() + seconds
        while not condition() and self.clock() < deadline:  # noqa: ASYNC110 - a status file has no events
            await asyncio.sleep(0.25)
