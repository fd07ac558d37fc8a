"""Answers to generation requests: one JSON object, or a stream of server-sent events. Both endpoints share them."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from aiohttp import web

from smartspec.scheduling.client import EngineClient, GenerationDelta, GenerationRequest, NotAcceptingError
from smartspec.server.context import CONTEXT
from smartspec.server.errors import ApiError, as_api_error
from smartspec.server.generation import Generation
from smartspec.server.protocol import GenerationBody, StreamOptions

log = logging.getLogger(__name__)

STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass
class Choice:
    """One sequence of an answer, as far as it has come."""

    text: str = ""
    token_texts: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generation_tokens: int = 0
    finish_reason: str | None = None


class Shape(Protocol):
    """How an endpoint writes what was generated; usage is added by the caller."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk before the first text of a choice, if the endpoint has one."""

    def chunk(self, index: int, delta: GenerationDelta) -> dict[str, Any]:
        """One chunk of a stream."""

    def last_chunk(self) -> dict[str, Any]:
        """The chunk without choices that carries the usage."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The complete answer."""


def new_id(prefix: str) -> str:
    """An id for an answer and its sequences: random, so that replicas need not agree on any."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now_unix() -> int:
    """Wall-clock time for the `created` field, in whole seconds."""
    return int(time.time())


async def answer(
    request: web.Request,
    body: GenerationBody,
    requests: Sequence[GenerationRequest],
    shape: Shape,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Generate *requests* (`body.n` in a row per prompt) and answer as the body asks."""
    context = request.app[CONTEXT]
    choices = [Choice() for _ in requests]

    def usage() -> dict[str, Any]:
        prompt = sum(choice.num_prompt_tokens for choice in choices[:: body.n])  # a prompt counts once
        cached = sum(choice.num_cached_tokens for choice in choices[:: body.n])
        completion = sum(choice.num_generation_tokens for choice in choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    engine = context.lifecycle.accepting_engine
    if len(requests) > 1:
        _check_room(engine, len(requests), param="n" if body.n > 1 else "prompt")
    async with Generation(engine, requests, context.exposition, clock=context.clock) as generation:
        if not body.stream:
            return await _answer_whole(generation, shape, choices, usage, headers)
        response = web.StreamResponse(headers={**STREAM_HEADERS, **headers})
        try:
            await response.prepare(request)
            await _send_events(response, generation, shape, choices, usage, body.stream_options)
            await response.write_eof()
        except ConnectionError:
            log.debug("event=client_left")  # leaving the generation frees its blocks
        return response


def _check_room(engine: EngineClient, num_sequences: int, *, param: str) -> None:
    """Refuse what an idle server has no room for: sequences start all or none, and a 429 would be tried for ever."""
    load = engine.load()
    if num_sequences > (room := load.max_num_seqs + load.max_queued_requests):
        message = f"{param}: the request makes {num_sequences} sequences; this server holds {room} at once"
        raise ApiError(400, message, param=param)


async def _answer_whole(
    generation: Generation,
    shape: Shape,
    choices: Sequence[Choice],
    usage: Callable[[], dict[str, Any]],
    headers: Mapping[str, str],
) -> web.Response:
    async for index, delta in generation:
        _count(choices[index], delta)
        choices[index].text += delta.text
        choices[index].token_texts += delta.token_texts
        choices[index].logprobs += delta.logprobs
    data = msgspec.json.encode(shape.whole(choices) | {"usage": usage()})
    return web.Response(body=data, content_type="application/json", headers=headers)


async def _send_events(
    response: web.StreamResponse,
    generation: Generation,
    shape: Shape,
    choices: Sequence[Choice],
    usage: Callable[[], dict[str, Any]],
    options: StreamOptions,
) -> None:
    """Send chunks as they come, then `[DONE]`; an error on the way is an event of its own, and no `[DONE]`."""
    opened: set[int] = set()

    def chunks(index: int, delta: GenerationDelta) -> Iterator[dict[str, Any]]:
        if index not in opened:
            opened.add(index)
            if (opening := shape.opening(index)) is not None:
                yield opening
        # A step may bring tokens but no text yet (half a character, perhaps a stop string): nothing to show then.
        if delta.text or delta.token_texts or delta.finish_reason or options.continuous_usage_stats:
            yield shape.chunk(index, delta)

    try:
        async for index, delta in generation:
            _count(choices[index], delta)
            extra: dict[str, Any] = {}
            if options.continuous_usage_stats:
                extra = {"usage": usage()}
            elif options.include_usage:
                extra = {"usage": None}
            if events := b"".join(_event(chunk | extra) for chunk in chunks(index, delta)):
                await response.write(events)
        tail = _event(shape.last_chunk() | {"usage": usage()}) if options.include_usage else b""
        await response.write(tail + b"data: [DONE]\n\n")
    except ConnectionError:
        raise
    except Exception as error:
        refusal = as_api_error(error)
        if refusal is None:
            log.exception("event=internal_error route=stream")
            refusal = ApiError(500, "internal error")
        await response.write(b"data: " + refusal.body() + b"\n\n")


def _count(choice: Choice, delta: GenerationDelta) -> None:
    """Take over the totals; raises NotAcceptingError when the engine ended the sequence on its own account."""
    if delta.finish_reason == "abort":
        raise NotAcceptingError("the server ended this request early")
    choice.num_prompt_tokens = delta.num_prompt_tokens
    choice.num_cached_tokens = delta.num_cached_tokens
    choice.num_generation_tokens = delta.num_generation_tokens
    choice.finish_reason = delta.finish_reason


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
