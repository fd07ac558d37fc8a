"""The composition root: `smartspec serve` puts the parts together and runs them until it is told to stop; `replay` goes
through what it has written down, and `selftest` tries a pair out."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from smartspec import arguments
from smartspec.async_engine.client import AsyncEngine
from smartspec.config import ConfigError, RuntimeConfig
from smartspec.policy.settings import PolicySettings
from smartspec.recorder import Recorder
from smartspec.scheduling.client import EngineClient
from smartspec.server.exchange import REQUEST_ID
from smartspec.server.serve import serve

if TYPE_CHECKING:
    from smartspec.async_engine.thread import LoadedEngine
    from smartspec.execution.proposers import Drafts

log = logging.getLogger("smartspec")

ENGINE_THREAD = "engine"
MAX_WORKERS = 2
LOAD_SECONDS = 2.0
"""How often a trace gets a load report: as often as an operator reads one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 told something that makes no sense."""
    parsed = arguments.parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s%(request)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_with_request_id)
    try:
        commands = {"serve": _serve_until_stopped, "replay": _replay, "selftest": _selftest, "bench": _bench}
        status = commands[parsed.command](parsed)
    except ConfigError as error:
        status = _complain(error, 2)
    except (OSError, ValueError, RuntimeError) as error:  # what files, ports and models have to say
        status = _complain(error, 1)
    except Exception as error:
        log.exception("event=failed")  # a defect of ours: whoever mends it needs to know where
        status = _complain(error, 1)
    if any(thread.name == ENGINE_THREAD for thread in threading.enumerate()):
        # The model is still loading, and Python would crash in native code if it took itself apart meanwhile.
        logging.shutdown()
        os._exit(status)
    return status


def _with_request_id(record: logging.LogRecord) -> bool:
    """Let each line say which request it is about, if it is about one."""
    request_id = REQUEST_ID.get()
    record.request = f" request={request_id}" if request_id else ""
    return True


def _complain(error: Exception, status: int) -> int:
    """Say in one line what is wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"smartspec: {text}", file=sys.stderr, flush=True)
    return status


def _replay(parsed: argparse.Namespace) -> int:
    """Print what a recording would have become under other settings."""
    # Imported here: the policy brings a compiler, and whoever only loads servers needs none.
    from smartspec import replay_report

    report = replay_report.replayed(parsed.file, arguments.replay_changes(parsed))
    print(report.as_json().decode() if parsed.json else report.as_table())
    return 0


def _selftest(parsed: argparse.Namespace) -> int:
    """Print what was found; progress goes to stderr."""
    # Imported here: torch takes seconds, and the other commands open ports, or need none of it.
    from smartspec.loadgen.prompts import texts
    from smartspec.selftest.suite import QUICK, Effort, selftest

    logging.getLogger().setLevel(logging.WARNING)
    began = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {what}", file=sys.stderr, flush=True)

    config, prompts = arguments.selftest_config(parsed), texts(parsed.prompts)
    report = selftest(config, prompts, QUICK if parsed.quick else Effort(), say)
    print(report.as_json().decode() if parsed.json else report.as_table(), flush=True)
    return 0 if report.is_ok else 1


def _bench(parsed: argparse.Namespace) -> int:
    """Load a server, and print what came of it; progress goes to stderr."""
    from smartspec.loadgen.arguments import bench_options

    options = bench_options(parsed)
    try:
        from smartspec.loadgen.bench import bench
    except ImportError as error:
        raise ConfigError(f"bench needs {error.name}: pip install '.[bench]'") from None
    return bench(options)


def _serve_until_stopped(parsed: argparse.Namespace) -> int:
    config = arguments.runtime_config(parsed)
    settings = arguments.initial_settings(config, parsed.policy_file)
    with _recorder(config) as recorder:
        return asyncio.run(_serve(config, settings, recorder))


@contextmanager
def _recorder(config: RuntimeConfig) -> Iterator[Recorder | None]:
    """What writes the trace, if one is wanted; a file that cannot be written is said before anything is loaded."""
    if config.trace.file is None:
        yield None
        return
    try:
        recorder = Recorder(config.trace.file, max_bytes=config.trace.max_bytes)
    except OSError as error:
        raise ConfigError(f"trace {config.trace.file}: {error.strerror or error}") from None
    try:
        yield recorder
    finally:
        recorder.close()


async def _serve(config: RuntimeConfig, settings: PolicySettings, recorder: Recorder | None) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once."""
    stop = asyncio.Event()

    def stop_or_exit(number: int) -> None:
        if stop.is_set():
            log.warning("event=killed signal=%s", signal.Signals(number).name)
            logging.shutdown()
            os._exit(128 + number)
        log.info("event=stopping signal=%s", signal.Signals(number).name)
        stop.set()

    loop = asyncio.get_running_loop()
    # Long texts are tokenised there, and whoever sends many of them must not take the engine's cores.
    loop.set_default_executor(ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="worker"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_or_exit, number)
    return 0 if await serve(config, _running_engine(config, settings, recorder), stop) else 1


@asynccontextmanager
async def _running_engine(
    config: RuntimeConfig, settings: PolicySettings, recorder: Recorder | None
) -> AsyncIterator[EngineClient]:
    """The engine in its thread, loaded on entering, stopped on leaving."""

    def build() -> "LoadedEngine[Drafts]":
        # Imported here, in the engine's thread: torch takes seconds, and the ports are open meanwhile.
        from smartspec.composition import build_engine

        return build_engine(config, settings, clock=time.monotonic, recorder=recorder)

    # The server's clock: times of requests and of deltas cross the seam.
    engine = AsyncEngine(build, config, settings, clock=time.monotonic)
    await engine.start()
    reading = None if recorder is None else asyncio.create_task(_record_loads(engine, recorder))
    try:
        yield engine
    finally:
        if reading is not None:
            reading.cancel()
        await engine.stop()


async def _record_loads(engine: EngineClient, recorder: Recorder) -> None:
    """Write down what an operator would read, when it would read it."""
    while True:
        recorder.load(engine.load())
        await asyncio.sleep(LOAD_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
