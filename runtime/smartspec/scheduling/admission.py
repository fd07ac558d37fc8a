"""Whether a request may come in: whether it could be served at all, and whether the queue has room for it."""

from dataclasses import dataclass

from smartspec.scheduling.client import InvalidRequestError

SHARE_OF_FREE = 1
"""A tenant alone may fill half of the queue, the next a quarter, and there is always something left for another."""


def check_fits(num_prompt_tokens: int, max_tokens: int, max_model_len: int, kv_cache_tokens: int) -> None:
    """Raise InvalidRequestError, naming the field at fault, for what could never run to its end.

    The newest token needs no slot in the KV cache: it is never attended to.
    """
    if num_prompt_tokens < 1:
        raise InvalidRequestError("prompt", "the prompt is empty: at least one token is needed")
    if max_tokens < 1:
        raise InvalidRequestError("max_tokens", f"max_tokens must be at least 1, got {max_tokens}")
    for limit, name in ((max_model_len, "the model's context length"), (kv_cache_tokens + 1, "the KV cache")):
        if num_prompt_tokens >= limit:
            raise InvalidRequestError(
                "prompt", f"the prompt has {num_prompt_tokens} tokens; {name} leaves room for at most {limit - 1}"
            )
        if num_prompt_tokens + max_tokens > limit:
            raise InvalidRequestError(
                "max_tokens",
                f"the prompt's {num_prompt_tokens} tokens and max_tokens ({max_tokens}) exceed {name} of {limit} "
                f"tokens: max_tokens can be at most {limit - num_prompt_tokens}",
            )


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How much may wait. `max_requests` 0: nothing waits, what cannot start at once is refused."""

    max_requests: int
    max_tokens: int


def most_at_once(tenant: str, *, num_startable: int, max_queued: int) -> int:
    """How many requests of *tenant* an idle server takes together; see `Backlog.has_room`."""
    num_places = num_startable + max_queued
    return max(num_startable, SHARE_OF_FREE * num_places // (1 + SHARE_OF_FREE)) if tenant else num_places


@dataclass(slots=True)
class _Share:
    """What waits of one tenant, or of all."""

    requests: int = 0
    tokens: int = 0


class Backlog:
    """What waits for its first step, in requests and in prompt tokens, whole and by tenant. Owned by one thread."""

    def __init__(self) -> None:
        self._whole = _Share()
        self._shares: dict[str, _Share] = {}

    @property
    def num_requests(self) -> int:
        """How many requests wait."""
        return self._whole.requests

    @property
    def num_tokens(self) -> int:
        """How many prompt tokens they have together."""
        return self._whole.tokens

    def add(self, tenant: str, num_tokens: int) -> None:
        """A request of *num_tokens* begins to wait."""
        for share in (self._whole, self._shares.setdefault(tenant, _Share())):
            share.requests += 1
            share.tokens += num_tokens

    def remove(self, tenant: str, num_tokens: int) -> None:
        """It waits no longer."""
        for share in (self._whole, self._shares[tenant]):
            share.requests -= 1
            share.tokens -= num_tokens
        if not self._shares[tenant].requests:
            del self._shares[tenant]

    def has_room(self, tenant: str, num_tokens: int, bounds: QueueBounds, *, num_startable: int) -> bool:
        """Whether one more request of *num_tokens* may come; *num_startable* requests leave with the next step.

        What waits of a named tenant may be at most `SHARE_OF_FREE` times what it leaves free: however many requests it
        sends, there is room for another's (source: Choudhury and Hahne, Dynamic Queue Length Thresholds, 1998). Its
        first needs only room in the whole. The nameless have no others to leave room for. An empty queue takes a
        prompt of any length.
        """
        if self._whole.requests < num_startable:
            return True
        free = bounds.max_requests + num_startable - self._whole.requests
        free_tokens = bounds.max_tokens - self._whole.tokens
        if free < 1 or (num_tokens > free_tokens and self._whole.requests):
            return False
        own = self._shares.get(tenant)
        if not tenant or own is None:
            return True
        return own.requests + 1 <= SHARE_OF_FREE * (free - 1) and own.tokens + num_tokens <= SHARE_OF_FREE * (
            free_tokens - num_tokens
        )
