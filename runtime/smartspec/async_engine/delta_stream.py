"""What a reader holds of a running request: an async generator whose closing always ends the request."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from smartspec.scheduling.client import GenerationDelta


class DeltaStream(AsyncGenerator[GenerationDelta, None]):
    """Deltas of one request in order, buffered without bound (max_tokens bounds them), ended by the last.

    A class, not an `async def` with `yield`: closing one of those before its first step would not run its `finally`,
    and the request would run on for nobody. All methods belong to the event loop.
    """

    def __init__(
        self,
        request_id: str,
        num_prompt_tokens: int,
        max_tokens: int,
        tenant: str,
        arrival_time: float,
        on_close: Callable[["DeltaStream"], None],
    ) -> None:
        self.request_id = request_id
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.tenant = tenant
        self.arrival_time = arrival_time
        self.first_token_time: float | None = None
        self.num_generation_tokens = 0
        self.is_scheduled = False
        self._on_close = on_close
        self._items: asyncio.Queue[GenerationDelta | Exception] = asyncio.Queue()
        self._is_over = False

    def put(self, delta: GenerationDelta) -> None:
        """Give the reader *delta*."""
        self.num_generation_tokens = delta.num_generation_tokens
        self._items.put_nowait(delta)

    def fail(self, error: Exception) -> None:
        """Let the reader meet *error* after what is buffered."""
        self._items.put_nowait(error)

    async def asend(self, value: None) -> GenerationDelta:
        """The next delta."""
        if self._is_over:
            raise StopAsyncIteration
        item = await self._items.get()
        if isinstance(item, Exception):
            self._is_over = True
            raise item
        self._is_over = item.finish_reason is not None
        return item

    async def athrow(self, *error: object) -> GenerationDelta:
        """Close, then raise what was thrown."""
        await self.aclose()
        raised = error[1] if len(error) > 1 and error[1] is not None else error[0]
        raise raised if isinstance(raised, BaseException) else raised()  # type: ignore[operator]

    async def aclose(self) -> None:
        """End the request if it has not ended, before the engine's next step."""
        self._is_over = True
        self._on_close(self)
