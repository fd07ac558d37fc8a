"""When the reader of a request is woken."""

import asyncio

import pytest

from smartspec.async_engine.delta_stream import MOST_BUFFERED, DeltaStream
from smartspec.scheduling.client import GenerationDelta, GenerationRequest, NotAcceptingError
from smartspec.scheduling.request import SamplingParams


def stream_of(*, is_streamed: bool) -> DeltaStream:
    """A stream that nobody has written to."""
    return DeltaStream(GenerationRequest("r", [1], SamplingParams(), is_streamed=is_streamed), 0.0, lambda _: None)


def delta(count: int, *, last: bool = False) -> GenerationDelta:
    """The delta of token number *count*."""
    return GenerationDelta(str(count), (count,), 1, count, float(count), finish_reason="length" if last else None)


async def numbers_heard(stream: DeltaStream, *, steps: int) -> list[int]:
    """How many deltas the reader has had when each of *steps* is over."""
    heard: list[int] = []

    async def read() -> None:
        while not heard or heard[-1] < steps:
            heard.append((await anext(stream)).num_generation_tokens)

    reading, counts = asyncio.create_task(read()), []
    for step in range(1, steps + 1):
        await asyncio.sleep(0)
        stream.put(delta(step, last=step == steps))
        await asyncio.sleep(0)
        counts.append(len(heard))
    await asyncio.wait_for(reading, 5)
    assert heard == list(range(1, steps + 1)), "all of them, in order"
    return counts


async def test_a_streamed_request_hears_of_every_step() -> None:
    """Each delta is there when its step is over."""
    assert await numbers_heard(stream_of(is_streamed=True), steps=5) == [1, 2, 3, 4, 5]


async def test_a_whole_answer_hears_of_the_first_step_and_of_the_end() -> None:
    """What lies between costs the event loop nothing, and comes with the end."""
    assert await numbers_heard(stream_of(is_streamed=False), steps=5) == [1, 1, 1, 1, 5]


async def test_a_long_whole_answer_is_handed_over_in_parts() -> None:
    """Neither kept until the end, nor read all at once then."""
    heard = await numbers_heard(stream_of(is_streamed=False), steps=2 * MOST_BUFFERED + 5)
    assert sorted(set(heard)) == [1, MOST_BUFFERED + 1, 2 * MOST_BUFFERED + 1, 2 * MOST_BUFFERED + 5]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_error_wakes_the_reader_after_what_came_before(is_streamed: bool) -> None:
    """A request that fails in the middle does not leave its reader waiting."""
    stream = stream_of(is_streamed=is_streamed)
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    stream.put(delta(1))
    assert (await asyncio.wait_for(reading, 5)).num_generation_tokens == 1
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    stream.fail(NotAcceptingError("gone"))
    with pytest.raises(NotAcceptingError, match="gone"):
        await asyncio.wait_for(reading, 5)
