"""What a reader holds of a running request: an async generator whose closing always ends the request."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from smartspec.scheduling.client import GenerationDelta, GenerationRequest

MOST_BUFFERED = 32
"""Of a whole answer so many deltas wake the reader: all of a long one would hold up the event loop at its end."""


class DeltaStream(AsyncGenerator[GenerationDelta, None]):
    """Deltas of one request in order, buffered without bound (max_tokens bounds them), ended by the last.

    A reader that waits is woken for each delta, or, where the request is not streamed, for the first, the last, and
    whenever `MOST_BUFFERED` are there.
    A class, not an `async def` with `yield`: closing one of those before its first step would not run its `finally`,
    and the request would run on for nobody. All methods belong to the event loop.
    """

    def __init__(
        self,
        request: GenerationRequest,
        arrival_time: float,
        on_close: Callable[["DeltaStream"], None],
    ) -> None:
        self.request_id = request.request_id
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.tenant = request.tenant
        self.arrival_time = arrival_time
        self.first_token_time: float | None = None
        self.num_generation_tokens = 0
        self.is_scheduled = False
        self._on_close = on_close
        self._is_streamed = request.is_streamed
        self._items: deque[GenerationDelta | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False

    def put(self, delta: GenerationDelta) -> None:
        """Give the reader *delta*."""
        is_first = not self.num_generation_tokens
        self.num_generation_tokens = delta.num_generation_tokens
        self._items.append(delta)
        if self._is_streamed or is_first or delta.finish_reason is not None or len(self._items) >= MOST_BUFFERED:
            self._wake()

    def fail(self, error: Exception) -> None:
        """Let the reader meet *error* after what is buffered."""
        self._items.append(error)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def asend(self, value: None) -> GenerationDelta:
        """The next delta."""
        if self._is_over:
            raise StopAsyncIteration
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._items.popleft()
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
