"""Request bodies of the public port: what is understood, what is refused by name, what is ignored with a word."""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from smartspec.server.errors import ApiError, validation_error

MAX_INT32 = 2**31 - 1
"""Bounds what becomes an element of a tensor: a larger one would fail the step, and every request in it."""

TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
Count = Annotated[int, Meta(ge=1)]


class StreamOptions(Struct, frozen=True):
    """What a stream says of usage: in a last chunk, or in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SpeculationBody(Struct, frozen=True, forbid_unknown_fields=True):
    """How this one request wants to be speculated upon: with `auto`, *max_tokens* is a ceiling."""

    mode: Literal["auto", "off", "fixed"] = "auto"
    max_tokens: Annotated[int, Meta(ge=0, le=32)] | None = None


class GenerationBody(Struct, kw_only=True):
    """What both endpoints understand."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] = 0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] = msgspec.field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] = msgspec.field(default_factory=list)
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    ignore_eos: bool = False
    speculation: SpeculationBody = SpeculationBody()
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None


class CompletionBody(GenerationBody, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    max_tokens: Count = 16
    logprobs: bool | int | None = None


class ContentPart(Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class Message(Struct):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: Annotated[list[Any], Meta(max_length=0)] | None = None


class ChatBody(GenerationBody, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False


class TokenizeBody(Struct):
    """`POST /tokenize`: a prompt, or a conversation put through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool = True


class DetokenizeBody(Struct):
    """`POST /detokenize`."""

    tokens: list[TokenId]
    model: str | None = None


UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Fields of the API that would change the answer and that we do not serve, with the values that ask for nothing."""

HARMLESS = frozenset(
    (
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    )
)
"""Fields of the API that change nothing in the answer of a server like this one: accepted without a word."""

Body = TypeVar("Body", bound=Struct)


def decode_body(data: bytes, kind: type[Body]) -> tuple[Body, list[str]]:
    """Parse a body; returns it and the names of the fields that mean nothing here.

    A field that is null counts as absent, which is how OpenAI's clients write it. Raises `ApiError` 400.
    """
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not a JSON object: {error}", code="invalid_json") from None
    fields = {name: value for name, value in raw.items() if value is not None}
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for name in fields.keys() & UNSUPPORTED.keys() - known:
        if fields[name] not in UNSUPPORTED[name]:
            raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported_field")
    try:
        body = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise validation_error(error) from None
    return body, sorted(fields.keys() - known - UNSUPPORTED.keys() - HARMLESS)
