"""`POST /v1/completions`: text or token ids in, text out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from aiohttp import web

from smartspec.scheduling.client import GenerationDelta, GenerationRequest, Tokenizer
from smartspec.server.answers import Choice, answer, new_id, now_unix
from smartspec.server.context import CONTEXT, read_body
from smartspec.server.errors import ApiError
from smartspec.server.parameters import (
    check_model,
    check_vocabulary,
    encode,
    room_for_answer,
    sampling_params,
    speculation_params,
)
from smartspec.server.protocol import CompletionBody

MAX_SEQUENCES = 256
"""In one request. They are queued all or none: many more would find the queue full for ever."""


@dataclass(frozen=True)
class CompletionShape:
    """How this endpoint writes; *with_logprobs* keeps track of where in the text each token begins."""

    answer_id: str
    model: str
    created: int
    with_logprobs: bool
    _offsets: dict[int, int] = field(default_factory=dict)

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _logprobs(self, index: int, texts: Sequence[str], logprobs: Sequence[float]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        *offsets, end = accumulate(map(len, texts), initial=self._offsets.get(index, 0))
        self._offsets[index] = end
        return {"tokens": texts, "token_logprobs": logprobs, "text_offset": offsets, "top_logprobs": None}

    def opening(self, index: int) -> None:
        """Completions have no chunk before the first text."""

    def chunk(self, index: int, delta: GenerationDelta) -> dict[str, Any]:
        """One chunk of a stream."""
        logprobs = self._logprobs(index, delta.token_texts, delta.logprobs)
        return self._object([_choice(index, delta.text, logprobs, delta.finish_reason)])

    def last_chunk(self) -> dict[str, Any]:
        """The chunk without choices that carries the usage."""
        return self._object([])

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The complete answer."""
        return self._object(
            [
                _choice(
                    index, choice.text, self._logprobs(index, choice.token_texts, choice.logprobs), choice.finish_reason
                )
                for index, choice in enumerate(choices)
            ]
        )


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Complete one or several prompts, `n` times each."""
    engine = request.app[CONTEXT].lifecycle.accepting_engine
    body, headers = await read_body(request, CompletionBody)
    info = engine.info
    check_model(info, body.model)
    if body.logprobs is not None and int(body.logprobs) not in (0, 1):
        raise ApiError(400, "logprobs: only the chosen token's is given: 0 or 1", param="logprobs")
    # For this endpoint 0 already asks for the chosen token's; only null and false ask for none.
    with_logprobs = body.logprobs is not None and body.logprobs is not False
    speculation = speculation_params(body)
    answer_id = new_id("cmpl")
    requests: list[GenerationRequest] = []
    for token_ids in await _prompts(engine.tokenizer, body.prompt, most=MAX_SEQUENCES // body.n):
        check_vocabulary(info, token_ids, param="prompt")
        max_tokens = room_for_answer(info, len(token_ids), body.max_tokens, param="prompt")
        for choice in range(body.n):
            sampling = sampling_params(body, max_tokens=max_tokens, logprobs=with_logprobs, choice=choice)
            name, salt = f"{answer_id}-{len(requests)}", body.cache_salt or ""
            requests.append(GenerationRequest(name, token_ids, sampling, speculation, salt))
    shape = CompletionShape(answer_id, info.model, now_unix(), with_logprobs)
    return await answer(request, body, requests, shape, headers)


async def _prompts(
    tokenizer: Tokenizer, prompt: str | Sequence[str | int | list[int]], *, most: int
) -> list[list[int]]:
    """Token ids of each prompt: a text, texts, token ids, or lists of token ids; not more than *most* of them."""
    if isinstance(prompt, str):
        prompts = await encode(tokenizer, [prompt])
    elif all(isinstance(item, int) for item in prompt):
        prompts = [[item for item in prompt if isinstance(item, int)]]
    elif len(prompt) > most:  # refused before they are tokenised: a body has room for a million
        raise ApiError(400, f"prompt: at most {MAX_SEQUENCES} sequences (prompts times n) a request", param="prompt")
    elif all(isinstance(item, str) for item in prompt):
        prompts = await encode(tokenizer, [item for item in prompt if isinstance(item, str)])
    elif all(isinstance(item, list) for item in prompt):
        prompts = [item for item in prompt if isinstance(item, list)]
    else:
        raise ApiError(400, "prompt: texts, token ids and lists of token ids must not be mixed", param="prompt")
    if not all(prompts):
        raise ApiError(400, "prompt: must have at least one token", param="prompt")
    return prompts
