"""What a request rules out, as token ids: all but `allowed_token_ids`, and `bad_words` as the tokenizer spells them."""

from collections.abc import Sequence

from smartspec.scheduling.client import EngineInfo, Tokenizer
from smartspec.server.errors import ApiError
from smartspec.server.parameters import check_vocabulary, encode
from smartspec.server.protocol import GenerationBody

TokenIds = tuple[int, ...]


async def banned(info: EngineInfo, tokenizer: Tokenizer, body: GenerationBody) -> tuple[TokenIds, tuple[TokenIds, ...]]:
    """The tokens allowed (none: all), and the bad words as tokens. Raises `ApiError` where together they could leave
    nothing to say: a text must be able to go on, whatever it has come to."""
    allowed = tuple(sorted(set(body.allowed_token_ids or ())))
    check_vocabulary(info, allowed, param="allowed_token_ids")
    words = await _spellings(tokenizer, body.bad_words)
    ends = {word[-1] for word in words}
    if allowed and ends.issuperset(allowed):
        message = "bad_words: they could rule out every one of allowed_token_ids"
        raise ApiError(400, message, param="bad_words")
    if info.vocab_size is not None and len(ends) >= info.vocab_size:
        raise ApiError(400, "bad_words: they could rule out every token there is", param="bad_words")
    return allowed, words


async def _spellings(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[TokenIds, ...]:
    """The token ids of each of *words*, at the beginning of a line and after a space.

    vLLM bans the second way only where it has as many tokens as the first. Here it is left out only where it says
    nothing new: where it ends with the first.
    """
    bare = [word.lstrip() or word for word in words]
    if "" in bare:
        raise ApiError(400, "bad_words: a word must not be empty", param="bad_words")
    spelled = await encode(tokenizer, [*bare, *(f" {word}" for word in bare)], add_special_tokens=False)
    found: dict[TokenIds, None] = {}
    for word, first, second in zip(bare, spelled[: len(bare)], spelled[len(bare) :], strict=True):
        if not first:
            raise ApiError(400, f"bad_words: {word[:40]!r} has no tokens", param="bad_words")
        found[tuple(first)] = None
        if second[-len(first) :] != first:
            found[tuple(second)] = None
    return tuple(found)
