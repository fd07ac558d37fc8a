"""Request bodies of the public port: what is understood, what is refused by name, what is ignored with a word."""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from smartspec.server.errors import ApiError, validation_error
from smartspec.server.structured_outputs import StructuredFields
from smartspec.server.tool_protocol import Tool, ToolCall, ToolChoice

MAX_INT32 = 2**31 - 1
"""Bounds what becomes an element of a tensor: a larger one would fail the step, and every request in it."""

MAX_LOGPROBS = 20
"""Most probable tokens named at one place, as in OpenAI's API."""
MAX_TIMEOUT_SECONDS = 86_400.0

TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]


class StreamOptions(Struct, frozen=True):
    """What a stream says of usage."""

    include_usage: Annotated[bool, Meta(description="In a last chunk without choices.")] = False
    continuous_usage_stats: Annotated[bool, Meta(description="In every chunk, so far.")] = False


class SpeculationBody(Struct, frozen=True, forbid_unknown_fields=True):
    """How this one request wants to be speculated upon: with `auto`, *max_tokens* is a ceiling. With *explain* each
    choice says, step by step, who proposed its tokens."""

    mode: Annotated[
        Literal["auto", "off", "fixed"], Meta(description="The policy decides, nothing is drafted, or max_tokens are.")
    ] = "auto"
    max_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=32)] | None, Meta(description="With fixed: the length; with auto: a ceiling.")
    ] = None
    explain: Annotated[bool, Meta(description="Say step by step who proposed each choice's tokens.")] = False


class GenerationBody(StructuredFields, kw_only=True):
    """What both endpoints understand."""

    model: Annotated[str | None, Meta(description="The model served; may be left out.")] = None
    n: Annotated[int, Meta(ge=1, le=16, description="Choices per prompt; with a seed, each has one of its own.")] = 1
    stream: Annotated[bool, Meta(description="Send the answer as server-sent events while it grows.")] = False
    stream_options: Annotated[StreamOptions, Meta(description="What a stream says of usage.")] = StreamOptions()
    temperature: Annotated[float, Meta(ge=0.0, le=2.0, description="0 takes the most probable token each time.")] = 1.0
    top_k: Annotated[
        int, Meta(ge=-1, le=MAX_INT32, description="Sample among so many most probable tokens; 0 and -1: all.")
    ] = 0
    top_p: Annotated[
        float, Meta(gt=0.0, le=1.0, description="Sample among the fewest tokens that have this probability together.")
    ] = 1.0
    min_p: Annotated[
        float, Meta(ge=0.0, le=1.0, description="Leave out tokens less probable than this times the most probable.")
    ] = 0.0
    presence_penalty: Annotated[
        float, Meta(ge=-2.0, le=2.0, description="Subtracted from the logits of tokens that the answer has already.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Meta(ge=-2.0, le=2.0, description="The same, times how often the answer has them.")
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        Meta(
            ge=0.01,
            le=100.0,
            description="Divides positive, multiplies negative logits of tokens in prompt or answer (transformers').",
        ),
    ] = 1.0
    logit_bias: Annotated[
        dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]],
        Meta(max_length=1024, description="Added to the logits of these tokens; the keys are token ids."),
    ] = msgspec.field(default_factory=dict)
    seed: Annotated[int | None, Meta(description="The same seed gives the same answer, speculation or not.")] = None
    stop: Annotated[
        str | Annotated[list[str], Meta(max_length=16)], Meta(description="The answer ends before any of these texts.")
    ] = msgspec.field(default_factory=list)
    stop_token_ids: Annotated[
        list[TokenId], Meta(max_length=64, description="The answer ends at any of these tokens.")
    ] = msgspec.field(default_factory=list)
    bad_words: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=256)]],
        Meta(max_length=1024, description="The answer never spells any of these texts as the tokenizer would."),
    ] = msgspec.field(default_factory=list)
    allowed_token_ids: Annotated[
        Annotated[list[TokenId], Meta(min_length=1)] | None,
        Meta(description="The answer has no other tokens; the end of text is one of them only if it is named."),
    ] = None
    min_tokens: Annotated[int, Meta(ge=0, description="No end and no stop before so many tokens.")] = 0
    ignore_eos: Annotated[bool, Meta(description="Go on after the model's own end of text.")] = False
    prompt_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        Meta(
            description="Log probabilities of the prompt's tokens, and of so many of the most probable at each place."
        ),
    ] = None
    return_token_ids: Annotated[bool, Meta(description="Add the token ids of prompt and answer.")] = False
    speculation: Annotated[
        SpeculationBody, Meta(description="How this request is to be speculated upon; changes no text.")
    ] = SpeculationBody()
    cache_salt: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1024)] | None,
        Meta(description="Computed prefixes are shared only under the same salt."),
    ] = None
    priority: Annotated[
        int, Meta(ge=-(2**31), le=MAX_INT32, description="A smaller one goes before the other requests of one's key.")
    ] = 0
    timeout: Annotated[
        Annotated[float, Meta(gt=0.0, le=MAX_TIMEOUT_SECONDS)] | None,
        Meta(description="Seconds after which the request is ended with an error; also as X-Request-Timeout."),
    ] = None


class CompletionBody(GenerationBody, kw_only=True):
    """`POST /v1/completions`."""

    prompt: Annotated[
        str | Annotated[list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)],
        Meta(description="A text, token ids, or a list of either."),
    ]
    max_tokens: Annotated[int, Meta(ge=0, description="At most so many tokens; 0 only with echo.")] = 16
    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | None,
        Meta(description="Generate so many choices per prompt, and return the n most probable per token."),
    ] = None
    add_special_tokens: Annotated[bool, Meta(description="Let the tokenizer put its own before a text.")] = True
    echo: Annotated[bool, Meta(description="Begin the text, and its log probabilities, with the prompt.")] = False
    logprobs: Annotated[
        bool | Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        Meta(description="Log probabilities of the answer's tokens and of so many of the most probable ones."),
    ] = None


class ContentPart(Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Prediction(Struct, frozen=True):
    """What the client expects most of the answer to be: a text, or parts of one."""

    type: Literal["content"]
    content: str | list[ContentPart]


class Message(Struct):
    """One turn of a conversation. An assistant's may have called tools; a tool's says to which call it belongs."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class ChatBody(GenerationBody, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, description="The conversation so far.")]
    max_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="The older name of max_completion_tokens.")
    ] = None
    max_completion_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="At most so many tokens; left out: as many as there is room for."),
    ] = None
    logprobs: Annotated[bool, Meta(description="Log probabilities of the answer's tokens.")] = False
    top_logprobs: Annotated[
        int,
        Meta(ge=0, le=MAX_LOGPROBS, description="With logprobs: also those of so many of the most probable tokens."),
    ] = 0
    tools: Annotated[list[Tool], Meta(max_length=128, description="Functions that the model may call.")] = (
        msgspec.field(default_factory=list)
    )
    tool_choice: Annotated[
        ToolChoice | None,
        Meta(description="auto (default with tools): the model decides; required, or a function: it must; none."),
    ] = None
    parallel_tool_calls: Annotated[bool, Meta(description="Whether one answer may have several calls.")] = True
    prediction: Annotated[
        Prediction | None, Meta(description="Text that most of the answer will repeat: it is drafted from.")
    ] = None


class TokenizeBody(Struct):
    """`POST /tokenize`: a prompt, or a conversation put through the chat template."""

    model: Annotated[str | None, Meta(description="The model served; may be left out.")] = None
    prompt: Annotated[str | None, Meta(description="A text.")] = None
    messages: Annotated[
        Annotated[list[Message], Meta(min_length=1)] | None, Meta(description="Or a conversation, as for chat.")
    ] = None
    add_special_tokens: Annotated[bool, Meta(description="Let the tokenizer put its own before a text.")] = True


class DetokenizeBody(Struct):
    """`POST /detokenize`."""

    tokens: Annotated[list[TokenId], Meta(description="Token ids.")]
    model: Annotated[str | None, Meta(description="The model served; may be left out.")] = None


UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
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
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
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
