"""The text of single tokens, for log probabilities: special tokens as they are written, half a character as U+FFFD."""

from collections.abc import Sequence

from smartspec.scheduling.client import ScoredToken, Tokenizer
from smartspec.scheduling.request import TokenLogprob


class TokenTexts:
    """Decodes each token once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def text(self, token_id: int) -> str:
        """The text of one token by itself; none for an id that only the model knows (a padded vocabulary)."""
        text = self._texts.get(token_id)
        if text is None:
            try:
                text = self._tokenizer.decode((token_id,), skip_special_tokens=False)
            except (OverflowError, IndexError, ValueError):
                text = ""
            self._texts[token_id] = text
        return text

    def name(self, logprobs: Sequence[TokenLogprob]) -> tuple[ScoredToken, ...]:
        """*logprobs* with texts."""
        return tuple(
            ScoredToken(
                scored.token_id,
                self.text(scored.token_id),
                scored.logprob,
                scored.rank,
                tuple((token_id, self.text(token_id), logprob) for token_id, logprob in scored.top),
            )
            for scored in logprobs
        )
