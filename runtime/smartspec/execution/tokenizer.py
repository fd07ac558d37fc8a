"""Text to token ids and back, and whether two models speak the same ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smartspec.config import ConfigError
from smartspec.scheduling.client import InvalidRequestError

PROBES = ("Hello, world", "def f(x):\n    return x + 1\n", "ünïcödé 漢字 🙂", "  spaces\t\ttabs  ", "1234567890")
"""Texts that tokenizers which only look alike encode differently."""


class HuggingFaceTokenizer:
    """A transformers tokenizer behind the `Tokenizer` seam."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, source: str, revision: str | None, *, trust_remote_code: bool) -> "HuggingFaceTokenizer":
        """The tokenizer at *source*; raises ConfigError when there is none."""
        try:
            return cls(AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"cannot load a tokenizer from {source!r}: {error}") from error

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, if there is one."""
        token_id = self._tokenizer.eos_token_id
        return None if token_id is None else int(token_id)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of *text*."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of *token_ids*, spaces as they are."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt for *messages*; raises InvalidRequestError when the model has no template or it refuses them."""
        if not self._tokenizer.chat_template:
            raise InvalidRequestError("messages", "this model has no chat template: use /v1/completions")
        try:
            prompt: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise InvalidRequestError("messages", f"the chat template refuses these messages: {error}") from error
        return prompt

    def differs_from(self, other: "HuggingFaceTokenizer") -> str | None:
        """What makes the two unfit to share token ids, or None."""
        ours, theirs = self._tokenizer.get_vocab(), other._tokenizer.get_vocab()
        if ours != theirs:
            unequal = {token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)}
            return f"{len(unequal)} tokens have other ids, for example {min(unequal)!r}"
        for text in PROBES:
            if self.encode(text) != other.encode(text):
                return f"{text!r} is encoded differently"
        return None
