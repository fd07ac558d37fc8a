"""Log probabilities as the endpoints write them: of the answer in OpenAI's two shapes, of the prompt in vLLM's."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from smartspec.scheduling.client import ScoredToken


def chat_logprobs(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """The chat endpoint's: an entry for each token, the most probable ones at its place inside."""
    return {"content": [_entry(token) | {"top_logprobs": [_entry(top) for top in token.top]} for token in tokens]}


def completion_logprobs(
    tokens: Sequence[ScoredToken], *, num_top: int, offset: int, first: str | None = None
) -> dict[str, Any]:
    """The completion endpoint's: parallel lists. *offset* is where the first token begins in the choice's text.

    *first* is the text of a prompt's first token, of which nothing is foretold. With *num_top* the chosen token is
    among the top ones too, so there may be one more.
    """
    names = [_name(token) for token in tokens]
    lengths = [len(token.text) for token in tokens]
    logprobs: list[float | None] = [token.logprob for token in tokens]
    tops: list[dict[str, float] | None] = [_tops(token, num_top) for token in tokens]
    if first is not None:
        names, logprobs, tops = [first, *names], [None, *logprobs], [None, *tops]
        lengths = [len(first), *lengths]
    return {
        "tokens": names,
        "token_logprobs": logprobs,
        "top_logprobs": tops if num_top else None,
        "text_offset": list(accumulate(lengths, initial=offset))[:-1],
    }


def prompt_logprobs(tokens: Sequence[ScoredToken], *, num_top: int) -> list[dict[str, Any] | None]:
    """vLLM's: null for the first token, then for each the chosen and the most probable ones by token id."""
    return [None, *(_ranked(token, num_top) for token in tokens)]


def mean_logprob(tokens: Sequence[ScoredToken]) -> float:
    """Per token: what `best_of` ranks by."""
    return sum(token.logprob for token in tokens) / max(1, len(tokens))


def _entry(token: ScoredToken) -> dict[str, Any]:
    octets = None if token.octets is None else list(token.octets)
    return {"token": token.text, "logprob": token.logprob, "bytes": octets}


def _name(token: ScoredToken) -> str:
    """The token's text, or what OpenAI writes where half a character has none: `bytes:\\xe2\\x82`."""
    if token.octets is None or token.octets == token.text.encode():
        return token.text
    return "bytes:" + "".join(f"\\x{octet:02x}" for octet in token.octets)


def _tops(token: ScoredToken, num_top: int) -> dict[str, float]:
    tops = {_name(token): token.logprob}
    for top in token.top[:num_top]:  # two tokens may read alike: the more probable one comes first
        tops.setdefault(_name(top), top.logprob)
    return tops


def _ranked(token: ScoredToken, num_top: int) -> dict[str, Any]:
    ranked = {str(token.token_id): {"logprob": token.logprob, "rank": token.rank, "decoded_token": token.text}}
    for top in token.top[:num_top]:
        ranked.setdefault(str(top.token_id), {"logprob": top.logprob, "rank": top.rank, "decoded_token": top.text})
    return ranked
