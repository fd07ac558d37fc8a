"""The sequences of one HTTP request: started together, read together, and all aborted when the client leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from types import TracebackType

from smartspec import metrics
from smartspec.scheduling.client import EngineClient, GenerationDelta, GenerationRequest, QueueFullError
from smartspec.server.errors import ApiError
from smartspec.server.exchange import Exchange
from smartspec.server.exposition import Exposition, SequenceTimer, facts_of


class Generation:
    """Running sequences: iterate for `(index, delta)`; leaving the context frees all that has not finished.

    Iterating raises `ApiError` 408 when *timeout_seconds* have passed since *exchange* began and there is more to come.
    """

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[GenerationRequest],
        exposition: Exposition,
        *,
        clock: Callable[[], float],
        exchange: Exchange,
        timeout_seconds: float | None = None,
    ) -> None:
        self._sequences: list[AsyncGenerator[GenerationDelta, None]] = []
        self._engine = engine
        self._requests = requests
        self._exposition = exposition
        self._timers = [SequenceTimer(exposition, clock) for _ in requests]
        self._owned = AsyncExitStack()
        self._first: tuple[int, GenerationDelta] | None = None
        self._exchange = exchange
        self._timeout_seconds = timeout_seconds
        self._deadline: float | None = None
        if timeout_seconds is not None:
            left = timeout_seconds - (clock() - exchange.began)
            self._deadline = asyncio.get_running_loop().time() + left

    async def __aenter__(self) -> "Generation":
        """Queue all sequences, or none: what the engine raises for one of them aborts those before it."""
        async with AsyncExitStack() as begun:
            for request in self._requests:
                try:
                    sequence = self._engine.generate(request)
                except QueueFullError:
                    self._exposition.count(metrics.REQUESTS_REJECTED)
                    raise
                self._sequences.append(await begun.enter_async_context(aclosing(sequence)))
            # Closed first: a sequence cannot be closed while a read of it is under way.
            self._deltas = await begun.enter_async_context(aclosing(self._merged()))
            self._owned = begun.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._owned.aclose()
        self._exchange.facts |= facts_of([timer for timer in self._timers if timer.is_begun])

    async def begin(self) -> None:
        """Wait until there is something to iterate over; raises what iterating would."""
        self._first = await anext(self._deltas, None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, GenerationDelta]]:
        """What the engine adds to any of the sequences, as it comes."""
        if self._first is not None:
            yield self._first
        async for added in self._deltas:
            yield added

    async def _merged(self) -> AsyncGenerator[tuple[int, GenerationDelta], None]:
        if len(self._sequences) == 1:
            while (delta := await self._next(0)) is not None:
                self._timers[0].observe(delta)
                yield 0, delta
            return
        # One task reads ahead by one delta per sequence; the engine buffers the rest, whatever the client's pace.
        reading = {self._read(index): index for index in range(len(self._sequences))}
        try:
            while reading:
                done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=reading.__getitem__):
                    index = reading.pop(task)
                    if (added := task.result()) is not None:
                        reading[self._read(index)] = index
                        self._timers[index].observe(added)
                        yield index, added
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    def _read(self, index: int) -> "asyncio.Task[GenerationDelta | None]":
        return asyncio.create_task(self._next(index))

    async def _next(self, index: int) -> GenerationDelta | None:
        """What comes next of one sequence, None at its end; what is there already is never too late."""
        if self._deadline is None:
            return await anext(self._sequences[index], None)
        for _ in range(2):  # woken by the deadline, a reader may find what was not worth waking it before
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    return await anext(self._sequences[index], None)
        message = f"the request was not finished within its timeout of {self._timeout_seconds:g} s"
        raise ApiError(408, message, code="deadline_exceeded")
