"""`POST /v1/completions`: text or token ids in, text out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from smartspec.scheduling.client import GenerationDelta, GenerationRequest, ScoredToken, Tokenizer
from smartspec.server.answers import Choice, answer, new_id, now_unix
from smartspec.server.bans import banned
from smartspec.server.context import CONTEXT, read_body
from smartspec.server.errors import ApiError
from smartspec.server.logprobs import completion_logprobs, prompt_logprobs
from smartspec.server.parameters import (
    beside_the_loop,
    check_model,
    check_prompt_logprobs,
    check_vocabulary,
    encode,
    for_choice,
    room_for_answer,
    sampling_params,
    speculation_params,
)
from smartspec.server.protocol import CompletionBody
from smartspec.server.structured_outputs import compiled, form_of

MAX_SEQUENCES = 256
"""In one request. They are queued all or none: many more would find the queue full for ever."""


@dataclass(frozen=True)
class Echo:
    """A prompt to begin a choice's text with; `first` is the text of its first token."""

    text: str
    first: str


@dataclass(frozen=True)
class CompletionShape:
    """How this endpoint writes. *num_top*: log probabilities are wanted, and of so many of the most probable tokens.

    *echoes*: the prompt of each choice, where the text is to begin with it. *num_prompt_top*: the same as *num_top* for
    log probabilities of the prompt, apart from the text.
    """

    answer_id: str
    model: str
    created: int
    num_top: int | None = None
    echoes: Sequence[Echo] = ()
    num_prompt_top: int | None = None
    _offsets: dict[int, int] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: Sequence[ScoredToken],
        prompt: Sequence[ScoredToken],
        finish_reason: str | None,
    ) -> dict[str, Any]:
        """A choice, or the next part of one: where each token begins goes on from the part before."""
        echo = self.echoes[index] if self.echoes and index not in self._begun else None
        self._begun.add(index)
        written: dict[str, Any] | None = None
        if self.num_top is not None:
            tokens = logprobs if echo is None else (*prompt, *logprobs)
            offset, first = self._offsets.get(index, 0), None if echo is None else echo.first
            written = completion_logprobs(tokens, num_top=self.num_top, offset=offset, first=first)
            self._offsets[index] = offset + len(first or "") + sum(len(token.text) for token in tokens)
        text = text if echo is None else echo.text + text
        return {"index": index, "text": text, "logprobs": written, "finish_reason": finish_reason}

    def opening(self, index: int) -> None:
        """Completions have no chunk before the first text."""

    def chunk(self, index: int, delta: GenerationDelta) -> dict[str, Any]:
        """One chunk of a stream."""
        choice = self._choice(index, delta.text, delta.logprobs, delta.prompt_logprobs, delta.finish_reason)
        return self._object([choice])

    def last_chunk(self) -> dict[str, Any]:
        """The chunk without choices that carries the usage."""
        return self._object([])

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The complete answer."""
        written = []
        for index, choice in enumerate(choices):
            prompt = choice.prompt_logprobs
            written.append(self._choice(index, choice.text, choice.logprobs, prompt, choice.finish_reason))
            if self.num_prompt_top is not None:
                written[-1]["prompt_logprobs"] = prompt_logprobs(prompt, num_top=self.num_prompt_top)
        return self._object(written)


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Complete one or several prompts, `n` times each."""
    engine = request.app[CONTEXT].lifecycle.accepting_engine
    body, headers = await read_body(request, CompletionBody)
    info = engine.info
    check_model(info, body.model)
    per_prompt = _sequences_per_prompt(body)
    num_top = _num_top(body.logprobs)
    prompt_top = body.prompt_logprobs
    if body.echo and num_top is not None:
        prompt_top = max(num_top, prompt_top or 0)
    logprobs = 0 if num_top is None and per_prompt > body.n else num_top
    speculation = speculation_params(body)
    grammar = await compiled(engine, form_of(body))
    answer_id = new_id("cmpl")
    requests: list[GenerationRequest] = []
    prompts = await _prompts(engine.tokenizer, body, most=MAX_SEQUENCES // per_prompt)
    num_scored = sum(map(len, prompts)) * (per_prompt if body.stream else 1)
    check_prompt_logprobs(body, num_scored, prompt_top, param="logprobs" if body.echo else "prompt_logprobs")
    max_tokens = max(1, body.max_tokens)
    bans = await banned(info, engine.tokenizer, body)
    first = sampling_params(info, body, max_tokens=max_tokens, bans=bans, logprobs=logprobs, prompt_logprobs=prompt_top)
    # Chunks are written as they come: in a stream none can wait for what another choice knows of the prompt.
    choices = [for_choice(first, i, scores_prompt=body.stream or not i) for i in range(per_prompt)]
    for token_ids in prompts:
        check_vocabulary(info, token_ids, param="prompt")
        room_for_answer(info, len(token_ids), max_tokens, param="prompt")
        for sampling in choices:
            name, salt = f"{answer_id}-{len(requests)}", body.cache_salt or ""
            rule = grammar.rule() if grammar else None
            requests.append(GenerationRequest(name, token_ids, sampling, speculation, salt, rule=rule))
    echoes = await _echoes(engine.tokenizer, body, prompts) if body.echo else ()
    shape = CompletionShape(answer_id, info.model, now_unix(), num_top, echoes, body.prompt_logprobs)
    return await answer(request, body, requests, shape, headers, best_of=per_prompt, only_prompt=body.max_tokens == 0)


def _num_top(logprobs: bool | int | None) -> int | None:
    """For this endpoint 0, or true, already asks for the chosen token's; only null and false ask for none."""
    if logprobs is None or logprobs is False:
        return None
    return 0 if logprobs is True else logprobs


def _sequences_per_prompt(body: CompletionBody) -> int:
    """How many choices of each prompt to generate."""
    best_of = body.n if body.best_of is None else body.best_of
    if best_of < body.n:
        raise ApiError(400, f"best_of ({best_of}) must not be below n ({body.n})", param="best_of")
    if best_of > body.n and body.stream:
        raise ApiError(400, "best_of: which choices are best is known at the end: not with stream", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens: 0 generates nothing, and without echo there is no text", param="max_tokens")
    return best_of


async def _echoes(tokenizer: Tokenizer, body: CompletionBody, prompts: Sequence[list[int]]) -> list[Echo]:
    """What each choice's text begins with: the prompt as it was written, or what its tokens read."""
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt

    def read() -> list[Echo]:
        texts = [item for item in given if isinstance(item, str)] or [tokenizer.decode(ids) for ids in prompts]
        firsts = [tokenizer.decode(ids[:1], skip_special_tokens=False) for ids in prompts]
        return [Echo(text, first) for text, first in zip(texts, firsts, strict=True) for _ in range(body.n)]

    return await beside_the_loop(sum(map(len, prompts)), read)


async def _prompts(tokenizer: Tokenizer, body: CompletionBody, *, most: int) -> list[list[int]]:
    """Token ids of each prompt: a text, texts, token ids, or lists of token ids; not more than *most* of them."""
    prompt, special = body.prompt, body.add_special_tokens
    if isinstance(prompt, str):
        prompts = await encode(tokenizer, [prompt], add_special_tokens=special)
    elif all(isinstance(item, int) for item in prompt):
        prompts = [[item for item in prompt if isinstance(item, int)]]
    elif len(prompt) > most:  # refused before they are tokenised: a body has room for a million
        raise ApiError(400, f"prompt: at most {MAX_SEQUENCES} sequences (prompts times n) a request", param="prompt")
    elif all(isinstance(item, str) for item in prompt):
        texts = [item for item in prompt if isinstance(item, str)]
        prompts = await encode(tokenizer, texts, add_special_tokens=special)
    elif all(isinstance(item, list) for item in prompt):
        prompts = [item for item in prompt if isinstance(item, list)]
    else:
        raise ApiError(400, "prompt: texts, token ids and lists of token ids must not be mixed", param="prompt")
    if not all(prompts):
        raise ApiError(400, "prompt: must have at least one token", param="prompt")
    return prompts
