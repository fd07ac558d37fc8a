"""From a request body to what the engine is asked: sampling, speculation, and prompts that fit."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from smartspec.scheduling.client import EngineInfo, Tokenizer
from smartspec.scheduling.request import SamplingParams, SpeculationParams
from smartspec.server.errors import ApiError
from smartspec.server.protocol import GenerationBody

SEED_MODULUS = 2**63
LONG_TEXT_CHARACTERS = 16_384
"""Tokenising more than this takes milliseconds: it is done beside the event loop, so that streams do not stall."""

MAX_PROMPT_LOGPROBS = 65_536
"""In one request. They are kept until all are there, and take some hundred bytes each."""

T = TypeVar("T")


def check_model(info: EngineInfo, model: str | None) -> None:
    """Refuse a model that is not the one served; a body without one means the one there is."""
    if model is not None and model != info.model:
        message = f"the model {model[:200]!r} does not exist here; this server has {info.model!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def check_vocabulary(info: EngineInfo, token_ids: Sequence[int], *, param: str) -> None:
    """Refuse ids that no token has. One of them in a batch would fail the whole step, and every request in it."""
    if info.vocab_size is not None and max(token_ids, default=0) >= info.vocab_size:
        raise ApiError(400, f"{param}: token ids must be below {info.vocab_size}", param=param)


def sampling_params(
    info: EngineInfo,
    body: GenerationBody,
    *,
    max_tokens: int,
    bans: tuple[tuple[int, ...], tuple[tuple[int, ...], ...]] = ((), ()),
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """How to sample the first of the body's choices; `for_choice` has the others, `bans.banned` the *bans*."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if "" in stop:
        raise ApiError(400, "stop: a stop string must not be empty", param="stop")
    if body.min_tokens > max_tokens:
        message = f"min_tokens ({body.min_tokens}) must not be above the number of tokens asked for ({max_tokens})"
        raise ApiError(400, message, param="min_tokens")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_k=max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        seed=None if body.seed is None else body.seed % SEED_MODULUS,
        stop=stop,
        stop_token_ids=frozenset(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=_logit_bias(info, body.logit_bias),
        allowed_token_ids=bans[0],
        bad_words=bans[1],
    )


def for_choice(sampling: SamplingParams, choice: int, *, scores_prompt: bool) -> SamplingParams:
    """The same for the *choice*-th choice: each has a seed of its own where one was named, so that choices differ. Who
    does not score the prompt leaves that to another choice."""
    return replace(
        sampling,
        seed=None if sampling.seed is None else (sampling.seed + choice) % SEED_MODULUS,
        prompt_logprobs=sampling.prompt_logprobs if scores_prompt else None,
    )


def _logit_bias(info: EngineInfo, bias: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """The bias by token id, sorted; raises `ApiError` for keys that are none."""
    pairs: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise ApiError(400, f"logit_bias: keys are token ids, got {key[:40]!r}", param="logit_bias")
        pairs[int(key)] = value
    check_vocabulary(info, list(pairs), param="logit_bias")
    return tuple(sorted(pairs.items()))


def check_prompt_logprobs(body: GenerationBody, num_prompt_tokens: int, num_top: int | None, *, param: str) -> None:
    """Refuse more log probabilities of prompts than an answer can have, and those of a stream, which has no place for
    them (vLLM's has none either)."""
    if body.stream and body.prompt_logprobs is not None:
        raise ApiError(400, "prompt_logprobs: not with stream", param="prompt_logprobs")
    if num_top is not None and (num := num_prompt_tokens * (num_top + 1)) > MAX_PROMPT_LOGPROBS:
        message = f"{param}: {num} log probabilities of prompt tokens; a request may have {MAX_PROMPT_LOGPROBS}"
        raise ApiError(400, message, param=param)


def speculation_params(body: GenerationBody) -> SpeculationParams:
    """How the request wants to be speculated upon."""
    wish = body.speculation
    if wish.mode == "fixed" and wish.max_tokens is None:
        message = "speculation.max_tokens is required when speculation.mode is fixed"
        raise ApiError(400, message, param="speculation.max_tokens")
    return SpeculationParams(wish.mode, wish.max_tokens, wish.explain)


def room_for_answer(info: EngineInfo, num_prompt_tokens: int, max_tokens: int | None, *, param: str) -> int:
    """How many tokens may be generated: what was asked for, or all that fits; raises `ApiError` when it does not."""
    room = info.max_model_len - num_prompt_tokens
    if room >= 1 and (max_tokens is None or max_tokens <= room):
        return room if max_tokens is None else max_tokens
    asked = "" if max_tokens is None else f" and {max_tokens} to generate"
    message = f"the context length is {info.max_model_len} tokens; the request has {num_prompt_tokens}{asked}"
    raise ApiError(400, message, param=param if room < 1 else "max_tokens", code="context_length_exceeded")


async def beside_the_loop(size: int, work: Callable[[], T]) -> T:
    """What *work* returns; it holds up the event loop only when its *size*, in characters or tokens, is small."""
    return work() if size < LONG_TEXT_CHARACTERS else await asyncio.to_thread(work)


async def encode(tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
    """Token ids of each of *texts*."""
    return await beside_the_loop(
        sum(map(len, texts)), lambda: [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
    )
