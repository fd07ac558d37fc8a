"""Answers to generation requests: one JSON object, or a stream of server-sent events. Both endpoints share them."""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
from aiohttp import web

from smartspec.scheduling.admission import most_at_once
from smartspec.scheduling.client import (
    EngineClient,
    GenerationDelta,
    GenerationRequest,
    NotAcceptingError,
    ScoredToken,
)
from smartspec.server.context import CONTEXT
from smartspec.server.errors import ApiError, as_api_error
from smartspec.server.exchange import exchange_of, timeout_of
from smartspec.server.generation import Generation
from smartspec.server.logprobs import mean_logprob
from smartspec.server.parameters import beside_the_loop
from smartspec.server.protocol import GenerationBody, StreamOptions

log = logging.getLogger(__name__)

LONG_ANSWER_FACTOR = 16
"""Writing a token's log probabilities takes as long as tokenising so many characters."""

Deltas = AsyncIterator[tuple[int, GenerationDelta]]

STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass
class Choice:
    """One sequence of an answer, as far as it has come."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[ScoredToken] = field(default_factory=list)
    prompt_logprobs: Sequence[ScoredToken] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_prediction_accepted: int = 0
    num_prediction_rejected: int = 0
    num_generation_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)


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
    *,
    best_of: int | None = None,
    only_prompt: bool = False,
) -> web.StreamResponse:
    """Generate *requests* and answer as the body asks.

    There are *best_of* in a row per prompt (None: `body.n`), of which the `body.n` best are returned. *only_prompt*:
    what is generated is not wanted (an engine cannot generate nothing).
    """
    context = request.app[CONTEXT]
    choices = [Choice() for _ in requests]
    per_prompt = best_of or body.n

    def usage() -> dict[str, Any]:
        prompt = sum(choice.num_prompt_tokens for choice in choices[::per_prompt])  # a prompt counts once
        cached = sum(choice.num_cached_tokens for choice in choices[::per_prompt])
        completion = sum(choice.num_generation_tokens for choice in choices)
        counts: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        if any(request.prediction_token_ids for request in requests):
            counts["completion_tokens_details"] = {
                "accepted_prediction_tokens": sum(choice.num_prediction_accepted for choice in choices),
                "rejected_prediction_tokens": sum(choice.num_prediction_rejected for choice in choices),
            }
        return counts

    engine, exchange = context.lifecycle.accepting_engine, exchange_of(request)
    requests = [
        replace(one, tenant=exchange.tenant, priority=body.priority, is_streamed=body.stream) for one in requests
    ]
    if len(requests) > 1:
        _check_room(engine, requests, param="best_of" if per_prompt > body.n else "n" if body.n > 1 else "prompt")
    async with Generation(
        engine,
        requests,
        context.exposition,
        clock=context.clock,
        exchange=exchange,
        timeout_seconds=timeout_of(request, body.timeout, context.config.request_timeout_seconds),
    ) as generation:
        deltas = _without_output(generation) if only_prompt else aiter(generation)
        if not body.stream:
            async for index, delta in deltas:
                _take(choices[index], delta)
            kept = _best(choices, per_prompt, body.n)
            prompts = [one.prompt_token_ids for one in requests[::per_prompt] for _ in range(body.n)]
            size = sum(len(choice.logprobs) + len(choice.prompt_logprobs) for choice in kept)
            data = await beside_the_loop(
                LONG_ANSWER_FACTOR * size,
                lambda: msgspec.json.encode(
                    _whole(shape, kept, prompts if body.return_token_ids else None) | {"usage": usage()}
                ),
            )
            return web.Response(body=data, content_type="application/json", headers=headers)
        await generation.begin()  # until then an error still has a status of its own
        response = web.StreamResponse(headers={**STREAM_HEADERS, **headers})
        try:
            await response.prepare(request)
            ids = [one.prompt_token_ids for one in requests] if body.return_token_ids else None
            await _send_events(response, deltas, shape, choices, usage, body.stream_options, ids)
            await response.write_eof()
        except ConnectionError:
            log.debug("event=client_left")  # leaving the generation frees its blocks
        return response


def _check_room(engine: EngineClient, requests: Sequence[GenerationRequest], *, param: str) -> None:
    """Refuse what an idle server has no room for: sequences start all or none, and a 429 would be tried for ever."""
    load = engine.load()
    room = most_at_once(requests[0].tenant, num_startable=load.max_num_seqs, max_queued=load.max_queued_requests)
    if len(requests) > room:
        message = f"{param}: the request makes {len(requests)} sequences; this server holds {room} of a client at once"
        raise ApiError(400, message, param=param)


async def _without_output(generation: Generation) -> Deltas:
    """The same deltas as of a request that generates nothing."""
    async for index, delta in generation:
        reason = "length" if delta.finish_reason == "stop" else delta.finish_reason
        nothing = {"text": "", "token_ids": (), "logprobs": (), "num_generation_tokens": 0, "explanation": None}
        yield index, msgspec.structs.replace(delta, finish_reason=reason, stop_reason=None, **nothing)


def _best(choices: list[Choice], per_prompt: int, n: int) -> list[Choice]:
    """Of each prompt's choices the *n* most probable per token, best first; in the order they have if these are all."""
    kept: list[Choice] = []
    for begin in range(0, len(choices), per_prompt):
        group = choices[begin : begin + per_prompt]
        for choice in group[1:]:  # whoever was asked to score the prompt did it for all
            choice.prompt_logprobs = group[0].prompt_logprobs
        if n < per_prompt:
            group.sort(key=lambda choice: mean_logprob(choice.logprobs), reverse=True)
        kept += group[:n]
    return kept


def _whole(shape: Shape, choices: Sequence[Choice], prompts: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """The complete answer with what both endpoints add to a choice; with *prompts*, token ids too."""
    whole = shape.whole(choices)
    for index, (written, choice) in enumerate(zip(whole["choices"], choices, strict=True)):
        written["stop_reason"] = choice.stop_reason
        if choice.steps:
            written["speculation"] = {"steps": choice.steps}
        if prompts is not None:
            written |= {"prompt_token_ids": prompts[index], "token_ids": choice.token_ids}
    return whole


async def _send_events(
    response: web.StreamResponse,
    deltas: Deltas,
    shape: Shape,
    choices: Sequence[Choice],
    usage: Callable[[], dict[str, Any]],
    options: StreamOptions,
    prompt_token_ids: Sequence[Sequence[int]] | None,
) -> None:
    """Send chunks as they come, then `[DONE]`; an error on the way is an event of its own, and no `[DONE]`.

    With *prompt_token_ids*, token ids are sent too, those of the prompt with the choice's first chunk.
    """
    opened: set[int] = set()
    first_sent = [False] * len(choices)

    def chunks(index: int, delta: GenerationDelta) -> Iterator[dict[str, Any]]:
        if index not in opened:
            opened.add(index)
            if (opening := shape.opening(index)) is not None:
                yield opening
        # A step may bring tokens but no text yet (half a character, perhaps a stop string): nothing to show then.
        if (
            delta.text
            or delta.logprobs
            or delta.finish_reason
            or delta.explanation
            or (prompt_token_ids is not None and delta.token_ids)
            or options.continuous_usage_stats
        ):
            chunk = shape.chunk(index, delta)
            if delta.finish_reason is not None:
                chunk["choices"][0]["stop_reason"] = delta.stop_reason
            if prompt_token_ids is not None:
                chunk["choices"][0]["token_ids"] = delta.token_ids
                if not first_sent[index]:
                    chunk["choices"][0]["prompt_token_ids"] = prompt_token_ids[index]
                first_sent[index] = True
            if steps := _steps(delta):
                chunk["choices"][0]["speculation"] = {"steps": steps}
            yield chunk

    try:
        async for index, delta in deltas:
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


def _take(choice: Choice, delta: GenerationDelta) -> None:
    """Add *delta* to its choice."""
    _count(choice, delta)
    choice.text += delta.text
    choice.token_ids += delta.token_ids
    choice.logprobs += delta.logprobs
    choice.prompt_logprobs = choice.prompt_logprobs or delta.prompt_logprobs
    choice.steps += _steps(delta)


def _count(choice: Choice, delta: GenerationDelta) -> None:
    """Take over the totals; raises NotAcceptingError when the engine ended the sequence on its own account."""
    if delta.refusal is not None:
        message = f"the grammar became too complex in the middle of the text: {delta.refusal}"
        raise ApiError(400, message, code="grammar_too_complex")
    if delta.finish_reason == "abort":
        raise NotAcceptingError("the server ended this request early")
    choice.num_prompt_tokens = delta.num_prompt_tokens
    choice.num_cached_tokens = delta.num_cached_tokens
    choice.num_prediction_accepted = delta.num_prediction_accepted
    choice.num_prediction_rejected = delta.num_prediction_rejected
    choice.num_generation_tokens = delta.num_generation_tokens
    choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason


def _steps(delta: GenerationDelta) -> list[dict[str, Any]]:
    """What `speculation.explain` asks for, of the one step that *delta* is: the first `accepted` of its tokens were
    proposed by `proposer`, the others are the target's own."""
    step = delta.explanation
    if step is None:
        return []
    return [
        {
            "proposer": step.proposer,
            "drafted": step.num_drafted,
            "accepted": step.num_accepted,
            "tokens": step.pieces,
        }
    ]


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
