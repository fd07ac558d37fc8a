"""`POST /v1/chat/completions`: a conversation in, the next turn out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from smartspec.scheduling.client import GenerationDelta, GenerationRequest, ScoredToken
from smartspec.server.answers import Choice, answer, new_id, now_unix
from smartspec.server.bans import banned
from smartspec.server.context import CONTEXT, read_body
from smartspec.server.conversation import encode_chat, encode_prediction
from smartspec.server.errors import ApiError
from smartspec.server.logprobs import chat_logprobs, prompt_logprobs
from smartspec.server.parameters import (
    check_model,
    check_prompt_logprobs,
    for_choice,
    room_for_answer,
    sampling_params,
    speculation_params,
)
from smartspec.server.protocol import ChatBody
from smartspec.server.structured_outputs import compiled, form_of
from smartspec.server.tools import plan_tools
from smartspec.server.turns import Turns


@dataclass(frozen=True)
class ChatShape:
    """How this endpoint writes: the role comes in an opening chunk of its own, the text in those after it."""

    answer_id: str
    model: str
    created: int
    with_logprobs: bool
    num_prompt_top: int | None = None
    turns: Turns = field(default_factory=Turns)

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        return chat_logprobs(tokens) if self.with_logprobs else None

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._object("chat.completion.chunk", [choice])

    def opening(self, index: int) -> dict[str, Any]:
        """Who speaks."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def chunk(self, index: int, delta: GenerationDelta) -> dict[str, Any]:
        """One chunk of a stream."""
        logprobs = self._logprobs(delta.logprobs)
        piece, finish_reason = self.turns.piece(index, delta.text, delta.finish_reason)
        return self._chunk(index, piece, logprobs, finish_reason)

    def last_chunk(self) -> dict[str, Any]:
        """The chunk without choices that carries the usage."""
        return self._object("chat.completion.chunk", [])

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The complete answer."""
        written = []
        for index, choice in enumerate(choices):
            message, finish_reason = self.turns.whole(choice.text, choice.finish_reason)
            logprobs = self._logprobs(choice.logprobs)
            written.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason})
        answer = self._object("chat.completion", written)
        if self.num_prompt_top is not None:
            scored = choices[0].prompt_logprobs
            answer["prompt_logprobs"] = prompt_logprobs(scored, num_top=self.num_prompt_top)
        return answer


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, `n` times."""
    engine = request.app[CONTEXT].lifecycle.accepting_engine
    body, headers = await read_body(request, ChatBody)
    info = engine.info
    check_model(info, body.model)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        message = "max_tokens and max_completion_tokens differ; max_completion_tokens is the newer name"
        raise ApiError(400, message, param="max_tokens")
    tools = plan_tools(body, engine.tokenizer)
    token_ids = await encode_chat(
        engine.tokenizer,
        body.messages,
        tools=tools.told if tools else (),
        instructions=tools.instructions if tools else "",
    )
    wanted = body.max_completion_tokens or body.max_tokens
    max_tokens = room_for_answer(info, len(token_ids), wanted, param="messages")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    check_prompt_logprobs(body, len(token_ids), body.prompt_logprobs, param="prompt_logprobs")
    speculation = speculation_params(body)
    prediction = await encode_prediction(engine.tokenizer, body.prediction)
    grammar = await compiled(engine, tools.form if tools else form_of(body))
    logprobs = body.top_logprobs if body.logprobs else None
    bans = await banned(info, engine.tokenizer, body)
    sampling = sampling_params(
        info, body, max_tokens=max_tokens, bans=bans, logprobs=logprobs, prompt_logprobs=body.prompt_logprobs
    )
    answer_id = new_id("chatcmpl")
    requests = [
        GenerationRequest(
            f"{answer_id}-{choice}",
            token_ids,
            for_choice(sampling, choice, scores_prompt=not choice),
            speculation,
            body.cache_salt or "",
            rule=grammar.rule() if grammar else None,
            prediction_token_ids=prediction,
            shows_special_tokens=tools is not None and tools.shows_marks,
        )
        for choice in range(body.n)
    ]
    shape = ChatShape(answer_id, info.model, now_unix(), body.logprobs, body.prompt_logprobs, Turns(tools))
    return await answer(request, body, requests, shape, headers)
