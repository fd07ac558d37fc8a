"""Text to ids and back by the checkpoint's own tokenizer, and whether a draft's agrees with its target's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from smartspec.config import ConfigError
from smartspec.scheduling.client import InvalidRequestError

_SAMPLES = ("Hello, world!", "def f(x):\n    return x + 1\n", "  naïve café — 東京 🙂\t12345", "<|endoftext|></s>")
"""Texts on which tokenizers with one vocabulary but other merges or normalisation part ways."""


_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(sorted(set(range(0x100)) - set(_PRINTABLE)))
}
"""GPT-2's letters for bytes, which all byte-level vocabularies use: the printable ones, then from U+0100 on."""


class HuggingFaceTokenizer:
    """Implements `smartspec.scheduling.client.Tokenizer` over a transformers tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = _plain_backend(tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of *text*."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of *token_ids*, as it is: nothing is tidied up."""
        text: str
        if self._backend is not None:
            text = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        else:
            text = self._tokenizer.decode(
                list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        return text

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token as a byte-level vocabulary or a byte fallback spells it, or None."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):
            return None
        if fallback := _BYTE_FALLBACK.fullmatch(token):
            return bytes.fromhex(fallback[1])
        if all(letter in _BYTE_OF for letter in token):
            return bytes(_BYTE_OF[letter] for letter in token)
        return None

    @property
    def chat_template(self) -> str | None:
        """The template that writes conversations with tools, if the model has one."""
        template = getattr(self._tokenizer, "chat_template", None)
        if isinstance(template, dict):  # several by name, one of them for tools perhaps
            template = template.get("tool_use") or template.get("default")
        return template if isinstance(template, str) else None

    def token_of(self, text: str) -> int | None:
        """The token of its own that *text* has beside the vocabulary of plain text, if it has one."""
        number: int | None = self._tokenizer.added_tokens_encoder.get(text)
        return number

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The prompt for *messages*, ready for an answer; raises InvalidRequestError("messages", ...) when the model
        has no template or its template refuses them."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise InvalidRequestError("messages", "this model has no chat template; use /v1/completions")
        try:
            prompt: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            # Templates are programs that come with a checkpoint: what they raise on odd messages is up to them.
            raise InvalidRequestError(
                "messages", f"the model's chat template refuses these messages: {error}"
            ) from error
        return prompt


def _plain_backend(tokenizer: PreTrainedTokenizerBase) -> Any | None:
    """The compiled tokenizer whose word is all that *tokenizer* says when it decodes, if there is one.

    To ask it takes a third of the time, and it is asked for every token of every request.
    """
    kind = type(tokenizer)
    if not isinstance(tokenizer, TokenizersBackend):
        return None
    is_plain = kind.decode is PreTrainedTokenizerBase.decode and kind._decode is TokenizersBackend._decode
    return tokenizer.backend_tokenizer if is_plain else None


def check_same(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> None:
    """Refuse a draft whose tokens mean something else; raises ConfigError that names the first difference.

    The draft may know fewer tokens than the target, never others.
    """
    known = target.get_vocab()
    for token, number in draft.get_vocab().items():
        if known.get(token) != number:
            raise ConfigError(
                f"draft: its tokenizer differs from the target's: token {token!r} is {number} there and "
                f"{known.get(token, 'unknown')} in the target; speculation needs one tokenizer for both"
            )
    for text in _SAMPLES:
        if target.encode(text) != draft.encode(text):
            raise ConfigError(f"draft: its tokenizer differs from the target's: {text!r} is split in other tokens")
