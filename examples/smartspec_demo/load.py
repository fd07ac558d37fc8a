"""The clients: requests that stream, timed one by one, and the shapes in which they come."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import ClientSession
from yarl import URL

from smartspec.loadgen import client as loadgen
from smartspec.loadgen.client import Job

Mode = Literal["request", "off", "fixed"]

FIXED_TOKENS = 4
SPECULATION: dict[Mode, dict[str, Any]] = {
    "request": {"mode": "auto"},  # what the server's policy, `request`, chooses
    "off": {"mode": "off"},
    "fixed": {"mode": "fixed", "max_tokens": FIXED_TOKENS},
}
MAX_THROTTLED = 20
ERROR_PAUSE_SECONDS = 0.5
"""A client that fails at once must not try again ten thousand times a second."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it; times in seconds, `started` since the demo began.

    `throttled` counts the 429s that were waited out. `error` is empty for a request that got all its tokens.
    """

    phase: str
    mode: Mode
    started: float
    latency: float
    ttft: float = 0.0
    tokens: int = 0
    throttled: int = 0
    replica: str = ""
    error: str = ""

    @property
    def tpot(self) -> float:
        """Mean time per output token after the first."""
        return (self.latency - self.ttft) / (self.tokens - 1) if self.tokens > 1 else 0.0


class Clients:
    """Sends prompts to one server and keeps a `Sample` of each request in `samples`."""

    def __init__(
        self, session: ClientSession, url: URL, model: str, prompts: Sequence[str], *, clock: Callable[[], float]
    ) -> None:
        self.samples: list[Sample] = []
        self.in_flight: Counter[Mode] = Counter()
        fields = {"temperature": 0, "ignore_eos": True}
        self._client = loadgen.Client(session, url, model, fields=fields, clock=clock)
        self._prompts = prompts
        self._clock = clock

    def prompts(self) -> Iterator[str]:
        """All prompts, over and over."""
        return itertools.cycle(self._prompts)

    async def complete(self, prompt: str, *, phase: str, mode: Mode, max_tokens: int) -> Sample:
        """One greedy request of exactly *max_tokens* tokens, so that equal requests are equal work."""
        started = self._clock()
        self.in_flight[mode] += 1
        try:
            sent, throttled = await self._send(Job(len(self.samples), 0.0, prompt, max_tokens), started, mode)
        finally:
            self.in_flight[mode] -= 1
        error = f"{sent.error}: {sent.detail}" if sent.error else ""
        if not error and sent.tokens != max_tokens:
            error = f"the stream ended after {sent.tokens} of {max_tokens} tokens"
        ttft = sent.latency if sent.ttft is None else sent.ttft
        sample = Sample(phase, mode, started, sent.latency, ttft, sent.tokens, throttled, sent.replica, error)
        self.samples.append(sample)
        if sample.error:
            await asyncio.sleep(ERROR_PAUSE_SECONDS)
        return sample

    async def keep_up(
        self,
        concurrency: int,
        until: asyncio.Event,
        *,
        phase: str,
        max_tokens: int | Sequence[int],
        pause: float = 0.0,
        mode: Callable[[], Mode] = lambda: "request",
    ) -> None:
        """*concurrency* clients, each sending its next request, in the *mode* of that moment, *pause* seconds after its
        last, until the event. Several *max_tokens* take turns, so that clients do not march in step.

        What is in flight at that moment is finished.
        """
        prompts = self.prompts()
        lengths = itertools.cycle([max_tokens] if isinstance(max_tokens, int) else max_tokens)

        async def client() -> None:
            while not until.is_set():
                await self.complete(next(prompts), phase=phase, mode=mode(), max_tokens=next(lengths))
                if pause:
                    await asyncio.sleep(pause)

        await asyncio.gather(*(client() for _ in range(concurrency)))

    async def _send(self, job: Job, started: float, mode: Mode) -> tuple[loadgen.Sample, int]:
        """What became of *job*, and how many 429s were waited out, as OpenAI's clients do: the server says when to come
        again, and that is part of the latency."""
        throttled = 0
        while True:
            sample = await self._client.send(job, started=started, speculation=SPECULATION[mode])
            if sample.error != "HTTP 429" or throttled == MAX_THROTTLED:
                return sample, throttled
            throttled += 1
            await asyncio.sleep(1.0 if sample.retry_after is None else sample.retry_after)
