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
    expected = ScoredToken(97, "a", -1.0, 2, ((1, "\x01", -0.5), (97, "a", -1.0), (500, "", -2.0)))
    assert texts.name([scored, scored]) == (expected, expected)
    assert tokenizer.num_decoded == 3
