"""Grammars are compiled once, beside the event loop, and a slow or bad one is nobody else's trouble."""

import asyncio
import threading
import time

import pytest

from smartspec.async_engine.grammars import MAX_CACHED, MAX_WAITING, NUM_THREADS, Grammars
from smartspec.scheduling.client import QueueFullError
from smartspec.scheduling.grammar import Grammar, GrammarError, GrammarSpec
from smartspec.scheduling.request import LogitRule


class Compiled:
    """A grammar that knows its source."""

    def __init__(self, source: str) -> None:
        self.source = source

    def rule(self) -> LogitRule:
        """Not needed here."""
        raise NotImplementedError


class Compiler:
    """Compiles what does not begin with "bad", while its gate is open; counts what it was asked."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []

    def __call__(self, spec: GrammarSpec) -> Grammar:
        """Compile *spec*."""
        self.asked.append(spec.source)
        assert self.gate.wait(timeout=10)
        if spec.source.startswith("bad"):
            raise GrammarError("it is bad")
        return Compiled(spec.source)


def regex(source: str) -> GrammarSpec:
    """A spec."""
    return GrammarSpec("regex", source)


async def test_a_grammar_is_compiled_once_for_all() -> None:
    """Twenty requests at once and one more later share one; another kind with the same source is another grammar."""
    compiler = Compiler()
    grammars = Grammars(compiler)
    compiler.gate.clear()
    waiting = [asyncio.create_task(grammars.get(regex("a"))) for _ in range(20)]
    await asyncio.sleep(0.01)
    compiler.gate.set()
    found = {id(grammar) for grammar in await asyncio.gather(*waiting)}
    assert found == {id(await grammars.get(regex("a")))}
    assert id(await grammars.get(GrammarSpec("grammar", "a"))) not in found
    assert compiler.asked == ["a", "a"]
    grammars.close()


async def test_the_loop_runs_on_while_one_is_compiled() -> None:
    """Another grammar is ready, and the loop turns, while a slow one is compiled."""
    compiler = Compiler()
    grammars = Grammars(lambda spec: compiler(spec) if spec.source == "slow" else Compiled(spec.source))
    compiler.gate.clear()
    slow = asyncio.create_task(grammars.get(regex("slow")))
    began = time.perf_counter()
    await grammars.get(regex("quick"))
    assert time.perf_counter() - began < 1.0
    assert not slow.done()
    compiler.gate.set()
    await slow
    grammars.close()


async def test_one_that_takes_too_long_is_refused_and_kept_for_later() -> None:
    """The request is told in time; when the compiler has come to its end after all, the next request has it."""
    compiler = Compiler()
    grammars = Grammars(compiler, timeout_seconds=0.02)
    compiler.gate.clear()
    with pytest.raises(GrammarError, match="takes more than"):
        await grammars.get(regex("a"))
    compiler.gate.set()
    deadline = time.monotonic() + 5
    while True:
        try:
            await grammars.get(regex("a"))
            break
        except GrammarError:
            assert time.monotonic() < deadline
    assert compiler.asked == ["a"]
    grammars.close()


async def test_one_that_waits_for_others_too_long_may_be_tried_again() -> None:
    """That all threads are busy is not its fault, so it is not told that it takes too long."""
    compiler = Compiler()
    grammars = Grammars(compiler, timeout_seconds=0.1)
    compiler.gate.clear()
    sources = [str(i) for i in range(NUM_THREADS + 1)]
    *slow, innocent = await asyncio.gather(*(grammars.get(regex(s)) for s in sources), return_exceptions=True)
    assert all(isinstance(error, GrammarError) for error in slow)
    assert isinstance(innocent, QueueFullError)
    compiler.gate.set()
    grammars.close()


async def test_a_bad_one_is_told_to_everybody_and_forgotten() -> None:
    """All that wait meet the error; so does the next, after another try."""
    compiler = Compiler()
    grammars = Grammars(compiler)
    results = await asyncio.gather(*(grammars.get(regex("bad")) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, GrammarError) for result in results)
    with pytest.raises(GrammarError):
        await grammars.get(regex("bad"))
    assert len(compiler.asked) == 2
    grammars.close()


async def test_a_client_that_leaves_takes_nothing_from_others() -> None:
    """Of two that wait for the same grammar, one is cancelled; the other gets it."""
    compiler = Compiler()
    grammars = Grammars(compiler)
    compiler.gate.clear()
    first, second = (asyncio.create_task(grammars.get(regex("a"))) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0)
    compiler.gate.set()
    assert isinstance(await second, Compiled)
    grammars.close()


async def test_a_flood_is_bounded() -> None:
    """So many may wait, and so many are kept: the one not used for longest is compiled again."""
    compiler = Compiler()
    grammars = Grammars(compiler)
    compiler.gate.clear()
    waiting = [asyncio.create_task(grammars.get(regex(str(i)))) for i in range(MAX_WAITING)]
    await asyncio.sleep(0.01)
    with pytest.raises(QueueFullError):
        await grammars.get(regex("one more"))
    compiler.gate.set()
    await asyncio.gather(*waiting)
    for i in range(MAX_CACHED):
        await grammars.get(regex(str(i)))
    await grammars.get(regex("one more"))
    assert compiler.asked.count("1") == 1
    await grammars.get(regex("0"))
    await grammars.get(regex("5"))
    assert compiler.asked.count("0") == 2
    grammars.close()
