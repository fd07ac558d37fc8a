"""An assistant's turn as OpenAI writes it: content, or calls of tools, whole or in pieces."""

from typing import Any

from smartspec.server.tool_parser import CallDelta, Parsed, ToolParser
from smartspec.server.tools import ToolPlan


class Turns:
    """Writes the choices of one answer; *tools* says how calls are found in their texts, None that there are none."""

    def __init__(self, tools: ToolPlan | None = None) -> None:
        self._tools = tools
        self._parsers: dict[int, ToolParser] = {}

    def piece(self, index: int, text: str, finish_reason: str | None) -> tuple[dict[str, Any], str | None]:
        """What *text* adds to choice *index*, and why it ends, if it does."""
        if self._tools is None:
            return ({"content": text} if text else {}), finish_reason
        parser = self._parsers.get(index)
        if parser is None:
            parser = self._parsers[index] = self._tools.parser()
        parsed = _read(parser, text, ends=finish_reason is not None)
        delta: dict[str, Any] = {"content": parsed.content} if parsed.content else {}
        if parsed.calls:
            delta["tool_calls"] = [_call_delta(call) for call in parsed.calls]
        return delta, _reason(finish_reason, parser)

    def whole(self, text: str, finish_reason: str | None) -> tuple[dict[str, Any], str | None]:
        """The message of a choice that is complete, and why it ended."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._tools is None:
            return message, finish_reason
        parser = self._tools.parser()
        parsed = _read(parser, text, ends=True)
        message["content"] = parsed.content
        if parsed.calls:
            message["content"] = parsed.content or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in parsed.calls
            ]
        return message, _reason(finish_reason, parser)


def _read(parser: ToolParser, text: str, *, ends: bool) -> Parsed:
    parsed = parser.push(text)
    if not ends:
        return parsed
    rest = parser.finish()
    return Parsed(parsed.content + rest.content, parsed.calls + rest.calls)


def _reason(finish_reason: str | None, parser: ToolParser) -> str | None:
    """A text that was cut stays one that was cut, whatever it called."""
    return "tool_calls" if finish_reason == "stop" and parser.num_calls else finish_reason


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
