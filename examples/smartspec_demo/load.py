"""The clients: requests that stream, timed one by one, and the shapes in which they come."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import ClientError, ClientResponse, ClientSession
from yarl import URL

Mode = Literal["request", "off", "fixed"]

FIXED_TOKENS = 4
SPECULATION: dict[Mode, dict[str, Any]] = {
    "request": {"mode": "auto"},  # what the server's policy, `request`, chooses
    "off": {"mode": "off"},
    "fixed": {"mode": "fixed", "max_tokens": FIXED_TOKENS},
}
MAX_THROTTLED = 20
LONGEST_PROMPT_CHARACTERS = 400
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
        self._session = session
        self._url = url / "v1/completions"
        self._model = model
        self._prompts = prompts
        self._clock = clock

    def prompts(self) -> Iterator[str]:
        """All prompts, over and over."""
        return itertools.cycle(self._prompts)

    async def complete(self, prompt: str, *, phase: str, mode: Mode, max_tokens: int) -> Sample:
        """One greedy request of exactly *max_tokens* tokens, so that equal requests are equal work."""
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "speculation": SPECULATION[mode],
        }
        started = self._clock()
        self.in_flight[mode] += 1
        try:
            sample = await self._send(body, Sample(phase, mode, started, 0.0))
        except (ClientError, TimeoutError, ValueError) as error:
            what = str(error) or type(error).__name__
            sample = Sample(phase, mode, started, self._clock() - started, error=what)
        finally:
            self.in_flight[mode] -= 1
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

    async def _send(self, body: dict[str, Any], sample: Sample) -> Sample:
        for throttled in range(MAX_THROTTLED):
            async with self._session.post(self._url, json=body) as answer:
                if answer.status != 429:
                    return await self._read(answer, body["max_tokens"], sample, throttled)
                # As OpenAI's clients do: the server says when to come again, and that is part of the latency.
                await asyncio.sleep(float(answer.headers.get("Retry-After", "1")))
        raise ValueError(f"still refused after {MAX_THROTTLED} tries")

    async def _read(self, answer: ClientResponse, wanted: int, sample: Sample, throttled: int) -> Sample:
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}: {(await answer.text())[:200]}")
        ttft, tokens, done = 0.0, 0, False
        async for line in answer.content:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                done = True  # and on to the stream's end: a connection read to its end is used again
                continue
            event = json.loads(data)
            if "error" in event:
                raise ValueError(str(event["error"].get("message", event["error"])))
            if not ttft and any(choice.get("text") for choice in event["choices"]):
                ttft = self._clock() - sample.started
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        latency = self._clock() - sample.started
        error = "" if done and tokens == wanted else f"the stream ended after {tokens} of {wanted} tokens"
        replica = answer.headers.get("X-SmartSpec-Replica", "")
        return Sample(
            sample.phase, sample.mode, sample.started, latency, ttft or latency, tokens, throttled, replica, error
        )


def read_prompts(text: str) -> list[str]:
    """The short prompts of a JSON Lines file whose objects have a field `prompt`: long ones would make equal requests
    unequal work."""
    prompts: list[str] = [json.loads(line)["prompt"] for line in text.splitlines() if line.strip()]
    return [prompt for prompt in prompts if len(prompt) <= LONGEST_PROMPT_CHARACTERS]
