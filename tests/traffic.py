"""Users of a Service: streams of the `openai` client, its retries off, each checked to its very end."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import openai

PROMPTS = Path(__file__).parents[1] / "examples/models/prompts.jsonl"
LONGEST_PROMPT_CHARACTERS = 400
ERROR_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """One request; times are `time.monotonic`'s, in seconds. *error* is empty for one that got all its tokens;
    *finish_reason* is what the stream said, whether or not that was true."""

    began: float
    ended: float
    first_token: float | None = None
    finish_reason: str | None = None
    error: str = ""


class Traffic:
    """As many clients as `clients` last said, each sending its next request when its last has ended, until the context
    is left; what is under way then is finished. They share one pool of kept connections, as one program's would."""

    def __init__(self, url: str, model: str, *, clients: int = 1, max_tokens: int = 24) -> None:
        self.outcomes: list[Outcome] = []
        self._url = f"{url}/v1"
        self._model = model
        self._max_tokens = max_tokens
        self._wanted = clients
        self._over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="traffic")

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join()

    def clients(self, count: int) -> None:
        """From now on *count* clients; those that are too many end with their request."""
        self._wanted = count

    @property
    def failed(self) -> list[Outcome]:
        """Those that did not get what they asked for."""
        return [outcome for outcome in self.outcomes if outcome.error]

    def report(self) -> str:
        """Counts and latencies, for people."""
        served = sorted(outcome.ended - outcome.began for outcome in self.outcomes if not outcome.error)
        errors = sorted({outcome.error for outcome in self.failed})
        middle, late = (served[int(len(served) * share)] if served else 0.0 for share in (0.5, 0.95))
        told = f"{len(self.outcomes)} requests, {len(self.failed)} failed; median {middle:.2f} s, p95 {late:.2f} s"
        return told + (f"; {errors[:3]}" if errors else "")

    async def _main(self) -> None:
        prompts = _prompts()
        tasks: dict[int, asyncio.Task[None]] = {}
        async with openai.AsyncOpenAI(base_url=self._url, api_key="unused", max_retries=0, timeout=120) as client:
            while not self._over:
                for index in range(self._wanted):
                    if index not in tasks or tasks[index].done():
                        tasks[index] = asyncio.create_task(self._send_on(client, prompts, index))
                await asyncio.sleep(0.02)
            await asyncio.gather(*tasks.values())

    async def _send_on(self, client: openai.AsyncOpenAI, prompts: Iterator[str], index: int) -> None:
        while index < self._wanted and not self._over:
            outcome = await self._send(client, next(prompts))
            self.outcomes.append(outcome)
            if outcome.error:
                await asyncio.sleep(ERROR_PAUSE_SECONDS)

    async def _send(self, client: openai.AsyncOpenAI, prompt: str) -> Outcome:
        began, first, reason, tokens, error = time.monotonic(), None, None, 0, ""
        try:
            stream = await client.completions.create(
                model=self._model, prompt=prompt, max_tokens=self._max_tokens, temperature=0, stream=True,
                stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
            )  # fmt: skip
            async for chunk in stream:
                if chunk.choices:
                    first = first or time.monotonic()
                    reason = chunk.choices[0].finish_reason or reason
                elif chunk.usage is not None:
                    tokens = chunk.usage.completion_tokens
        except Exception as problem:  # whatever went wrong is the finding
            cause = f" ({type(problem.__cause__).__name__})" if problem.__cause__ else ""
            error = f"{type(problem).__name__}{cause}: {problem}"
        else:
            if (tokens, reason) != (self._max_tokens, "length"):
                error = f"the stream ended after {tokens} of {self._max_tokens} tokens with finish_reason {reason}"
        return Outcome(began, time.monotonic(), first, reason, error)


def _prompts() -> Iterator[str]:
    """Short prompts without end, no two of them alike from the start: from a prefix cache, which would fill and make
    the work lighter as time goes on, none has anything."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    prompts: list[str] = [json.loads(line)["prompt"] for line in lines if line.strip()]
    short = [prompt for prompt in prompts if len(prompt) <= LONGEST_PROMPT_CHARACTERS]
    for number, prompt in enumerate(itertools.cycle(short)):
        yield f"# {number}\n{prompt}"
