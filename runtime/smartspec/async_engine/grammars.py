"""Grammars on their way from a request to the engine: compiled beside the event loop and beside the engine's steps."""

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from smartspec.scheduling.client import QueueFullError
from smartspec.scheduling.grammar import Grammar, GrammarError, GrammarSpec

MAX_CACHED = 128
"""Compiled grammars kept for the next request; the least recently used goes first."""
MAX_WAITING = 64
"""Grammars that wait for a thread. A flood of new ones is refused, like a flood of requests."""
NUM_THREADS = 2
STACK_BYTES = 128 << 20
"""For each of them: compilers follow long chains of rules by recursion, and an overflow would end the server. Of such a
stack only what is used takes memory."""
TIMEOUT_SECONDS = 10.0
"""The compiler has bounds of its own and comes to an end by itself; its request is told after this time."""


class Grammars:
    """Compiles each grammar once, by *compile_grammar*, however many requests bring it. Used on the event loop."""

    def __init__(
        self, compile_grammar: Callable[[GrammarSpec], Grammar], *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._compile = compile_grammar
        self._timeout_seconds = timeout_seconds
        self._compiled: OrderedDict[GrammarSpec, Grammar] = OrderedDict()
        self._waiting: dict[GrammarSpec, asyncio.Future[Grammar]] = {}
        self._begun: dict[GrammarSpec, float] = {}  # written by the threads
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")

    async def get(self, spec: GrammarSpec) -> Grammar:
        """The grammar of *spec*. Raises GrammarError, or QueueFullError when too many others are being compiled."""
        found = self._compiled.get(spec)
        if found is not None:
            self._compiled.move_to_end(spec)
            return found
        waiting = self._waiting.get(spec)
        if waiting is None:
            if len(self._waiting) >= MAX_WAITING:
                raise QueueFullError(1.0)
            waiting = self._start(spec)
            self._waiting[spec] = waiting
            waiting.add_done_callback(lambda done: self._keep(spec, done))
        try:
            # Shielded: others may wait for the same grammar, and a client that leaves must not take it from them.
            return await asyncio.wait_for(asyncio.shield(waiting), self._timeout_seconds)
        except TimeoutError:
            if time.monotonic() - self._begun.get(spec, math.inf) < self._timeout_seconds / 2:
                raise QueueFullError(1.0) from None  # most of the time it waited for others: no fault of its own
            raise GrammarError(f"it takes more than {self._timeout_seconds:.0f} s to compile") from None

    def _start(self, spec: GrammarSpec) -> "asyncio.Future[Grammar]":
        # A thread is begun by the submission that finds none idle, with the stack that is the default at that moment.
        usual = threading.stack_size(STACK_BYTES)
        try:
            return asyncio.get_running_loop().run_in_executor(self._threads, self._compile_now, spec)
        finally:
            threading.stack_size(usual)

    def _compile_now(self, spec: GrammarSpec) -> Grammar:
        self._begun[spec] = time.monotonic()
        return self._compile(spec)

    def close(self) -> None:
        """Compile nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _keep(self, spec: GrammarSpec, done: "asyncio.Future[Grammar]") -> None:
        self._waiting.pop(spec, None)
        self._begun.pop(spec, None)
        # An error is taken out of the future here, or one that nobody waits for any more would be reported as lost.
        if not done.cancelled() and done.exception() is None:
            self._compiled[spec] = done.result()
            if len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
