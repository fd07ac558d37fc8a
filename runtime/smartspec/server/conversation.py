"""Messages as chat templates understand them, tools and earlier calls among them, and the prompt that comes of it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from smartspec.scheduling.client import Tokenizer
from smartspec.server.errors import ApiError
from smartspec.server.parameters import beside_the_loop
from smartspec.server.protocol import ContentPart, Message, Prediction
from smartspec.server.tool_protocol import ToolCall


async def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    instructions: str = "",
) -> list[int]:
    """Token ids of a conversation; the template writes all special tokens itself.

    *tools* are for templates that know what to do with them; *instructions* go before everything else as a system
    message.
    """
    plain = [_plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if instructions:
        plain = _with_instructions(plain, instructions)
    size = sum(len(str(message)) for message in plain) + sum(len(str(tool)) for tool in tools)
    return await beside_the_loop(
        size,
        lambda: tokenizer.encode(
            _in_characters(tokenizer.apply_chat_template(plain, tools=tools)), add_special_tokens=False
        ),
    )


async def encode_prediction(tokenizer: Tokenizer, prediction: Prediction | None) -> list[int]:
    """Token ids of what the client expects to read; none without an expectation."""
    if prediction is None:
        return []
    text = _text(prediction.content, "prediction")
    return await beside_the_loop(len(text), lambda: tokenizer.encode(text, add_special_tokens=False))


def _in_characters(text: str) -> str:
    """*text* with U+FFFD for each half of a surrogate pair, which no tokenizer takes: arguments of a call are JSON as
    text, where a model may write one, and its client sends them back."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _plain_message(message: Message, where: str) -> dict[str, Any]:
    """What templates understand: a role and a text, and what belongs to tools. `developer` is OpenAI's newer word for
    `system`."""
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": _text(message.content, where)}
    if message.tool_calls:
        if role != "assistant":
            param = f"{where}.tool_calls"
            raise ApiError(400, f"{param}: only an assistant calls tools, not {role}", param=param)
        plain["tool_calls"] = [
            _plain_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)
        ]
    if role == "tool":
        if message.tool_call_id is None:
            param = f"{where}.tool_call_id"
            raise ApiError(400, f"{param} is required in a tool's message", param=param)
        plain["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _plain_call(call: ToolCall, where: str) -> dict[str, Any]:
    """A call with its arguments as an object, which is what templates write out."""
    param = f"{where}.function.arguments"
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{param}: must be a JSON object, as text", param=param)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _text(content: str | Sequence[ContentPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            param = f"{where}.content[{index}].type"
            raise ApiError(400, f"{param}: only text is supported, got {part.type[:40]!r}", param=param)
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            param = f"{where}.content[{index}].{part.type}"
            raise ApiError(400, f"{param} is missing", param=param)
        texts.append(text)
    return "".join(texts)


def _with_instructions(messages: list[dict[str, Any]], instructions: str) -> list[dict[str, Any]]:
    """For a template that knows no tools: instructions in front, and calls and results of earlier turns as text."""
    written = []
    for message in messages:
        calls = message.get("tool_calls", ())
        lines = [message["content"], *(json.dumps(call["function"]) for call in calls)]
        role = "user" if message["role"] == "tool" else message["role"]
        written.append({"role": role, "content": "\n".join(line for line in lines if line)})
    if written[0]["role"] == "system":
        instructions = f"{written.pop(0)['content']}\n\n{instructions}"
    return [{"role": "system", "content": instructions}, *written]
