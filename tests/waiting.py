"""Waiting in tests for what other tasks and processes bring about."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Return as soon as *condition* holds; raises TimeoutError when that takes longer than *seconds*."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is awaited has no event: counters, files, processes
            await asyncio.sleep(0.005)
