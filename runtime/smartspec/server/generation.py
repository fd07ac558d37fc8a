"""The sequences of one HTTP request: started together, read together, and all aborted when the client leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType

from smartspec import metrics
from smartspec.scheduling.client import EngineClient, GenerationDelta, GenerationRequest, QueueFullError
from smartspec.server.exposition import Exposition, SequenceTimer


class Generation:
    """Running sequences: iterate for `(index, delta)`; leaving the context frees all that has not finished."""

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[GenerationRequest],
        exposition: Exposition,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._sequences: list[AsyncGenerator[GenerationDelta, None]] = []
        self._engine = engine
        self._requests = requests
        self._exposition = exposition
        self._timers = [SequenceTimer(exposition, clock) for _ in requests]
        self._owned = AsyncExitStack()

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

    def __aiter__(self) -> AsyncIterator[tuple[int, GenerationDelta]]:
        """What the engine adds to any of the sequences, as it comes."""
        return self._deltas

    async def _merged(self) -> AsyncGenerator[tuple[int, GenerationDelta], None]:
        if len(self._sequences) == 1:
            async for delta in self._sequences[0]:
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
        async def read() -> GenerationDelta | None:
            return await anext(self._sequences[index], None)

        return asyncio.create_task(read())
