"""Log probabilities as the endpoints write them: of the answer in OpenAI's two shapes, of the prompt in vLLM's."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from smartspec.scheduling.client import ScoredToken


def chat_logprobs(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """The chat endpoint's: an entry for each token, the most probable ones at its place inside."""
    return {
        "content": [
            _entry(token.text, token.logprob)
            | {"top_logprobs": [_entry(text, logprob) for _, text, logprob in token.top]}
            for token in tokens
        ]
    }


def completion_logprobs(
    tokens: Sequence[ScoredToken], *, num_top: int, offset: int, first: str | None = None
) -> dict[str, Any]:
    """The completion endpoint's: parallel lists. *offset* is where the first token begins in the choice's text.

    *first* is the text of a prompt's first token, of which nothing is foretold. With *num_top* the chosen token is
    among the top ones too, so there may be one more.
    """
    texts = [token.text for token in tokens]
    logprobs: list[float | None] = [token.logprob for token in tokens]
    tops: list[dict[str, float] | None] = [_tops(token, num_top) for token in tokens]
    if first is not None:
        texts, logprobs, tops = [first, *texts], [None, *logprobs], [None, *tops]
    return {
        "tokens": texts,
        "token_logprobs": logprobs,
        "top_logprobs": tops if num_top else None,
        "text_offset": list(accumulate(map(len, texts), initial=offset))[:-1],
    }


def prompt_logprobs(tokens: Sequence[ScoredToken], *, num_top: int) -> list[dict[str, Any] | None]:
    """vLLM's: null for the first token, then for each the chosen and the most probable ones by token id."""
    return [None, *(_ranked(token, num_top) for token in tokens)]


def mean_logprob(tokens: Sequence[ScoredToken]) -> float:
    """Per token: what `best_of` ranks by."""
    return sum(token.logprob for token in tokens) / max(1, len(tokens))


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # Half a character has no text of its own, and its bytes are not known here.
    octets = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": octets}


def _tops(token: ScoredToken, num_top: int) -> dict[str, float]:
    tops = {token.text: token.logprob}
    for _, text, logprob in token.top[:num_top]:  # two tokens may read alike: the more probable one comes first
        tops.setdefault(text, logprob)
    return tops


def _ranked(token: ScoredToken, num_top: int) -> dict[str, Any]:
    ranked = {str(token.token_id): {"logprob": token.logprob, "rank": token.rank, "decoded_token": token.text}}
    for rank, (token_id, text, logprob) in enumerate(token.top[:num_top], 1):
        ranked.setdefault(str(token_id), {"logprob": logprob, "rank": rank, "decoded_token": text})
    return ranked
