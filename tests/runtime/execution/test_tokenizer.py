"""The tokenizer behind the server's seam."""

import sys
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from smartspec.config import ConfigError
from smartspec.execution.tokenizer import HuggingFaceTokenizer, check_same
from smartspec.scheduling.client import InvalidRequestError
from tiny import byte_tokenizer


@pytest.fixture
def tokenizer() -> HuggingFaceTokenizer:
    """A byte-level tokenizer with a chat template."""
    return HuggingFaceTokenizer(byte_tokenizer(300))


@pytest.mark.parametrize("text", ["", "tea  time", " naïve 東京 🙂 \n\t", "a . b , c ' s"])
def test_text_survives_the_round_trip(tokenizer: HuggingFaceTokenizer, text: str) -> None:
    """Nothing is tidied up on the way back."""
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_skipped_unless_wanted(tokenizer: HuggingFaceTokenizer) -> None:
    """The end token is no text."""
    assert tokenizer.decode([*tokenizer.encode("tea"), 257]) == "tea"
    assert tokenizer.decode([257], skip_special_tokens=False) == "<|end|>"


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked() -> None:
    """Only what transformers would decode with the compiled tokenizer, and nothing else, is decoded by it alone."""
    tokenizer = byte_tokenizer(300)
    tea = tokenizer.encode("tea")
    assert HuggingFaceTokenizer(tokenizer).decode(tea) == "tea"
    tokenizer.__class__ = type("Own", (PreTrainedTokenizerFast,), {"_decode": lambda *_, **options: "its own"})
    assert HuggingFaceTokenizer(tokenizer).decode(tea) == "its own"


def test_a_chat_becomes_a_prompt_that_waits_for_an_answer(tokenizer: HuggingFaceTokenizer) -> None:
    """By the model's own template."""
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages) == "<|user|>hi\n<|assistant|>"


def test_a_refusal_of_the_template_is_the_clients_error() -> None:
    """A template may raise; so may its lack."""
    words = byte_tokenizer(300)
    words.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        HuggingFaceTokenizer(words).apply_chat_template([{"role": "user", "content": "hi"}])
    assert caught.value.param == "messages"
    words.chat_template = None
    with pytest.raises(InvalidRequestError, match="no chat template"):
        HuggingFaceTokenizer(words).apply_chat_template([])


def test_arguments_too_deep_for_the_template_are_the_clients_error() -> None:
    """What could be read is not always what can be written again: a template writes further down the stack."""
    words = byte_tokenizer(300)
    words.chat_template = "{{ messages[0].tool_calls | tojson }}"
    arguments: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit()):  # which compilers raise
        arguments = {"a": arguments}
    with pytest.raises(InvalidRequestError, match="refuses these messages"):
        HuggingFaceTokenizer(words).apply_chat_template([{"role": "assistant", "tool_calls": [arguments]}])


def test_a_draft_may_know_fewer_tokens_but_no_others() -> None:
    """A smaller vocabulary with the same numbers passes as long as texts split alike."""
    check_same(byte_tokenizer(300), byte_tokenizer(300))
    with pytest.raises(ConfigError, match="is 300 there and unknown in the target"):
        check_same(byte_tokenizer(300), byte_tokenizer(301))


def test_equal_vocabularies_with_other_rules_are_told_apart() -> None:
    """Texts are compared too."""
    other = byte_tokenizer(300)
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ConfigError, match="is split in other tokens"):
        check_same(byte_tokenizer(300), other)


def test_tokens_that_are_no_text_have_bytes() -> None:
    """In a byte-level vocabulary all tokens' bytes join to the text's; a byte fallback is spelled in hexadecimal."""
    tokenizer = HuggingFaceTokenizer(byte_tokenizer(384))
    text = "naïve 東京 🙂\n\x00"
    pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert b"".join(piece or b"?" for piece in pieces).decode() == text
    fallback = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"<0xE2>": 0, "東": 1}, [])))
    assert [HuggingFaceTokenizer(fallback).token_bytes(token) for token in (0, 1, 2)] == [b"\xe2", None, None]
