"""One request to an OpenAI-compatible server, streamed and timed as its reader meets it."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession
from aiohttp.http_exceptions import LineTooLong
from yarl import URL


@dataclass(frozen=True)
class Job:
    """One request: its *number* in the plan, when it is due (seconds from the run's start), what it asks for."""

    number: int
    due: float
    prompt: str
    max_tokens: int


@dataclass(frozen=True)
class Sample:
    """What became of a request, by its *number* in the plan. Times in seconds: *due* from the run's start, *late* from
    being due; *ttft* and *latency* from being due, so that a late generator flatters nobody; *gaps* between one piece
    of text and the next.

    *error* says in a few words what kind of failure it was, and *detail* what the server said; both are empty for a
    request that was answered whole. *retry_after*: seconds after which a refusal asks to be tried again. *replica* is
    who answered, where a front says so.
    """

    number: int
    due: float
    late: float = 0.0
    ttft: float | None = None
    latency: float = 0.0
    gaps: tuple[float, ...] = ()
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""
    detail: str = ""
    retry_after: float | None = None
    replica: str = ""

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None where there are not two."""
        if self.ttft is None or self.tokens < 2 or self.error:
            return None
        return (self.latency - self.ttft) / (self.tokens - 1)


class _RequestError(Exception):
    """A kind of failure, and what the server said."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Client:
    """How to ask one server: *fields* go into every body, *isolates* gives each request a cache of its own."""

    session: ClientSession
    base: URL
    model: str
    chat: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    isolates: bool = False
    clock: Callable[[], float] = time.perf_counter

    async def send(self, job: Job, *, started: float, speculation: Mapping[str, Any] | None = None) -> Sample:
        """Send *job*, whose due time counts from *started*, and read its answer to the end; raises only when
        cancelled."""
        due = started + job.due
        late = max(0.0, self.clock() - due)
        reading = _Reading(due, self.clock)
        error = detail = replica = ""
        retry_after: float | None = None
        try:
            async with self.session.post(self.base / self._path, json=self._body(job, speculation)) as answer:
                retry_after = _number(answer.headers.get("Retry-After"))
                replica = answer.headers.get("X-SmartSpec-Replica", "")
                await _read(answer, reading)
        except _RequestError as failure:
            error, detail = failure.kind, failure.detail
        except TimeoutError:  # before ClientError: aiohttp's own are both
            error = "timeout"
        except ClientError as failure:
            error, detail = "connection", str(failure) or type(failure).__name__
        return Sample(
            number=job.number,
            due=job.due,
            late=late,
            ttft=reading.first,
            latency=self.clock() - due,
            gaps=tuple(reading.gaps),
            prompt_tokens=reading.prompt_tokens,
            tokens=reading.tokens,
            error=error,
            detail=" ".join(detail.split())[:300],
            retry_after=retry_after,
            replica=replica,
        )

    @property
    def _path(self) -> str:
        return "v1/chat/completions" if self.chat else "v1/completions"

    def _body(self, job: Job, speculation: Mapping[str, Any] | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": job.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }
        if self.chat:
            body["messages"] = [{"role": "user", "content": job.prompt}]
        else:
            body["prompt"] = job.prompt
        if self.isolates:
            body["cache_salt"] = uuid.uuid4().hex  # prompts repeat: none may find its like computed already
        if speculation is not None:
            body["speculation"] = dict(speculation)
        return body


class _Reading:
    """An answer as far as it has been read."""

    def __init__(self, due: float, clock: Callable[[], float]) -> None:
        self._due, self._clock = due, clock
        self._last = due
        self.first: float | None = None
        self.gaps: list[float] = []
        self.pieces = self.prompt_tokens = self.tokens = 0
        self.is_finished = False

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the stream."""
        for choice in event.get("choices") or ():
            if choice.get("text") or (choice.get("delta") or {}).get("content"):
                self._piece()
            self.is_finished = self.is_finished or choice.get("finish_reason") is not None
        usage = event.get("usage")
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self.tokens = usage.get("completion_tokens") or 0

    def _piece(self) -> None:
        now = self._clock()
        if self.first is None:
            self.first = now - self._due
        else:
            self.gaps.append(now - self._last)
        self._last = now
        self.pieces += 1


async def _read(answer: ClientResponse, reading: _Reading) -> None:
    """Read a stream to its end; raises _RequestError for anything but a whole answer."""
    if answer.status != 200:
        # Not `text()`: what stands between us and the server may send anything, and a sample is to come of it.
        raise _RequestError(f"HTTP {answer.status}", error_message((await answer.read()).decode(errors="replace")))
    async for line in _lines(answer):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            continue  # and on to the stream's end: a connection read to its end is used again
        try:
            event = json.loads(data)
        except ValueError:
            raise _RequestError("not an event", data[:80].decode(errors="replace")) from None
        if not isinstance(event, dict) or event.get("error"):
            raise _RequestError("error in the stream", error_message(data.decode(errors="replace")))
        reading.take(event)
    if not reading.is_finished:
        raise _RequestError("cut short", f"the stream ended after {reading.pieces} pieces without a finish_reason")
    # A server that counts no tokens brought at least one with each piece.
    reading.tokens = reading.tokens or reading.pieces


async def _lines(answer: ClientResponse) -> AsyncIterator[bytes]:
    """The lines of a stream; raises _RequestError for one without end."""
    try:
        async for line in answer.content:
            yield line
    except LineTooLong:
        raise _RequestError("not an event", "a line that is longer than any event") from None


def _number(text: str | None) -> float | None:
    """Seconds of a Retry-After; None for a date, which no server of this kind sends."""
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None


def error_message(text: str) -> str:
    """What an error body says to people: OpenAI's error object, FastAPI's `detail`, or the text itself."""
    try:
        data = json.loads(text)
    except ValueError:
        return text[:300]
    if isinstance(data, dict):
        error = data.get("error") or data.get("detail") or data.get("message") or data
        return str(error.get("message", error) if isinstance(error, dict) else error)
    return str(data)
