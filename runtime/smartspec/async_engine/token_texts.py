"""Text and bytes of single tokens, for log probabilities: special tokens as they are written, half a character as
U+FFFD with its true bytes."""

from collections.abc import Sequence

from smartspec.scheduling.client import ScoredToken, Tokenizer
from smartspec.scheduling.request import TokenLogprob

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenTexts:
    """Decodes each token once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spelled: dict[int, tuple[str, bytes | None]] = {}

    def name(self, logprobs: Sequence[TokenLogprob]) -> tuple[ScoredToken, ...]:
        """*logprobs* with texts."""
        if not logprobs:  # of most requests, at every step
            return ()
        return tuple(
            ScoredToken(
                scored.token_id,
                *self._spell(scored.token_id),
                scored.logprob,
                scored.rank,
                tuple(
                    ScoredToken(token_id, *self._spell(token_id), logprob, rank)
                    for rank, (token_id, logprob) in enumerate(scored.top, 1)
                ),
            )
            for scored in logprobs
        )

    def _spell(self, token_id: int) -> tuple[str, bytes | None]:
        """Text and bytes of one token by itself; none for an id that only the model knows (a padded vocabulary)."""
        spelled = self._spelled.get(token_id)
        if spelled is None:
            spelled = self._spelled[token_id] = self._decode(token_id)
        return spelled

    def _decode(self, token_id: int) -> tuple[str, bytes | None]:
        try:
            text = self._tokenizer.decode((token_id,), skip_special_tokens=False)
            return text, self._tokenizer.token_bytes(token_id) if REPLACEMENT in text else text.encode()
        except (OverflowError, IndexError, ValueError):
            return "", b""
