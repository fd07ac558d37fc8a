"""Texts of single tokens: each is decoded once, and one that the tokenizer does not know has none."""

from collections.abc import Sequence

from fake_engine import CharacterTokenizer
from smartspec.async_engine.token_texts import TokenTexts
from smartspec.scheduling.client import ScoredToken
from smartspec.scheduling.request import TokenLogprob


class SmallTokenizer(CharacterTokenizer):
    """Knows a hundred tokens, and counts."""

    def __init__(self) -> None:
        self.num_decoded = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """As its parent, up to token 99."""
        self.num_decoded += 1
        if max(token_ids) >= 100:
            raise IndexError
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


def test_tokens_get_their_texts() -> None:
    """Of the chosen and of the most probable ones; special tokens are shown; a padded vocabulary has ids without."""
    tokenizer = SmallTokenizer()
    texts = TokenTexts(tokenizer)
    scored = TokenLogprob(97, -1.0, 2, ((1, -0.5), (97, -1.0), (500, -2.0)))
    top = (
        ScoredToken(1, "\x01", b"\x01", -0.5, 1),
        ScoredToken(97, "a", b"a", -1.0, 2),
        ScoredToken(500, "", b"", -2.0, 3),
    )
    expected = ScoredToken(97, "a", b"a", -1.0, 2, top)
    assert texts.name([scored, scored]) == (expected, expected)
    assert tokenizer.num_decoded == 3


class HalfTokenizer(SmallTokenizer):
    """Token 7 is the first byte of a character; of token 8 nobody knows."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Nothing that could be read."""
        return "\N{REPLACEMENT CHARACTER}"

    def token_bytes(self, token_id: int) -> bytes | None:
        """What the vocabulary says."""
        return {7: b"\xe2"}.get(token_id)


def test_half_a_character_has_its_bytes() -> None:
    """They are asked for only where the text does not have them."""
    (first, second) = TokenTexts(HalfTokenizer()).name([TokenLogprob(7, -1.0, 1), TokenLogprob(8, -1.0, 1)])
    assert (first.octets, second.octets) == (b"\xe2", None)
