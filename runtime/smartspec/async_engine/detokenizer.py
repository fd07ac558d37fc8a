"""Tokens to text while they come: never half a character, never the beginning of a stop string.

Source of the window technique: Hugging Face text-generation-inference, `Model.decode_token`. Only a short tail of
tokens is decoded again, so that the cost per token does not grow with the text.
"""

from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Struct

from smartspec.scheduling.client import Tokenizer
from smartspec.scheduling.request import FinishReason

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_CHARACTER_TOKENS = 4
"""UTF-8 spells no character with more bytes, and no token has less than one."""

MAX_WINDOW_TOKENS = 16
NUM_CONTEXT_TOKENS = 5
"""Prompt tokens the text is decoded after: some tokenizers drop a space at the beginning of a text."""


class Piece(Struct, frozen=True, gc=False):
    """What new tokens added: *text*, how many of them belong to the output, and the stop string that ended it."""

    text: str
    num_tokens: int
    stop: str | None = None


class Detokenizer:
    """The text of one request. With stop strings, tokens are taken one by one: where a text ends must not depend on
    how many tokens a step happened to bring."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        shows_special_tokens: bool = False,
    ) -> None:
        decode = partial(tokenizer.decode, skip_special_tokens=False) if shows_special_tokens else tokenizer.decode
        self._text = _GrowingText(decode, prompt_token_ids[-NUM_CONTEXT_TOKENS:])
        self._stops = _StopStrings(stop) if stop else None
        self._min_tokens = min_tokens
        self._num_tokens = 0

    def push(self, token_ids: Sequence[int], finish_reason: FinishReason | None = None) -> Piece:
        """Add *token_ids*; with a *finish_reason* they are the last, and all text still held back comes out.

        A token that ends the text ("stop") is counted, but is no text itself.
        """
        spoken = token_ids[:-1] if finish_reason == "stop" else token_ids
        if self._stops is None:
            text = self._text.push(spoken)
            return Piece(text + self._text.flush() if finish_reason else text, len(token_ids))
        parts: list[str] = []
        for count, token_id in enumerate(spoken, 1):
            self._num_tokens += 1
            text, stop = self._stops.push(self._text.push((token_id,)), armed=self._num_tokens > self._min_tokens)
            parts.append(text)
            if stop is not None:
                return Piece("".join(parts), count, stop)
        if finish_reason:
            text, stop = self._stops.push(self._text.flush(), armed=self._num_tokens > self._min_tokens)
            parts += (text, "" if stop is not None else self._stops.flush())
            return Piece("".join(parts), len(token_ids), stop)
        return Piece("".join(parts), len(token_ids))

    def push_each(self, token_ids: Sequence[int], finish_reason: FinishReason | None = None) -> list[Piece]:
        """What `push` gives, token by token: as many pieces as tokens belong to the output."""
        pieces: list[Piece] = []
        for count, token_id in enumerate(token_ids, 1):
            pieces.append(self.push((token_id,), finish_reason if count == len(token_ids) else None))
            if pieces[-1].stop is not None:
                break
        return pieces


def joined(pieces: Sequence[Piece]) -> Piece:
    """All of *pieces* as one."""
    text = "".join(piece.text for piece in pieces)
    return Piece(text, sum(piece.num_tokens for piece in pieces), pieces[-1].stop)


class _GrowingText:
    """Text of a growing sequence of tokens, given out in whole characters."""

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int]) -> None:
        self._decode = decode
        # `_window` is decoded each time; its first `_num_shown` characters are out. Tokens in `_pending` may end
        # inside a character.
        self._window = list(context)
        self._num_shown = len(decode(self._window).rstrip(REPLACEMENT)) if self._window else 0
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """The characters that became whole with *token_ids*."""
        if not token_ids:
            return ""
        self._pending.extend(token_ids)
        for end in range(len(self._pending), max(0, len(self._pending) - MAX_CHARACTER_TOKENS), -1):
            text = self._decode(self._window + self._pending[:end])
            if not text.endswith(REPLACEMENT):
                return self._take(end, text)
        # More tokens than a character can have: these bytes are no text, and waiting would not make them any.
        end = len(self._pending) - MAX_CHARACTER_TOKENS
        return self._take(end, self._decode(self._window + self._pending[:end])) if end > 0 else ""

    def flush(self) -> str:
        """What is left, half characters included."""
        return self._take(len(self._pending), self._decode(self._window + self._pending))

    def _take(self, end: int, text: str) -> str:
        """Move *end* pending tokens to the window, which now reads *text*."""
        new = text[self._num_shown :]
        taken = self._pending[:end]
        del self._pending[:end]
        if len(self._window) + end > MAX_WINDOW_TOKENS and taken:
            self._window = taken
            text = self._decode(taken)
        else:
            self._window.extend(taken)
        self._num_shown = len(text)
        return new


class _StopStrings:
    """Cuts a text before the stop string that is complete first, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, piece: str, *, armed: bool) -> tuple[str, str | None]:
        """The text certain after *piece*, and the stop that ended it; not *armed*, one complete now is plain text."""
        buffer = self._held + piece
        if armed and piece:
            # A match lies at least partly in the new piece: an older one would have been found before.
            found = []
            for stop in self._stops:
                start = buffer.find(stop, max(0, len(self._held) - len(stop) + 1))
                if start >= 0:
                    found.append((start + len(stop), start))
            if found:
                self._held = ""
                end, start = min(found)
                return buffer[:start], buffer[start:end]
        keep = max(_overlap(buffer, stop) for stop in self._stops)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], None

    def flush(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of *text* that is a proper beginning of *stop*."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
