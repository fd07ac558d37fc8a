"""The composition root: `smartspec serve` puts the parts together and runs them until it is told to stop."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from smartspec import arguments
from smartspec.async_engine.client import AsyncEngine
from smartspec.config import ConfigError, RuntimeConfig
from smartspec.policy.settings import PolicySettings
from smartspec.scheduling.client import EngineClient
from smartspec.server.serve import serve

if TYPE_CHECKING:
    from smartspec.async_engine.thread import LoadedEngine
    from smartspec.execution.proposers import Drafts

log = logging.getLogger("smartspec")

ENGINE_THREAD = "engine"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 told something that makes no sense."""
    parsed = arguments.parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = arguments.runtime_config(parsed)
        settings = arguments.initial_settings(config, parsed.policy_file)
        status = asyncio.run(_serve(config, settings))
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


def _complain(error: Exception, status: int) -> int:
    """Say in one line what is wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"smartspec: {text}", file=sys.stderr, flush=True)
    return status


async def _serve(config: RuntimeConfig, settings: PolicySettings) -> int:
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
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_or_exit, number)
    return 0 if await serve(config, _running_engine(config, settings), stop) else 1


@asynccontextmanager
async def _running_engine(config: RuntimeConfig, settings: PolicySettings) -> AsyncIterator[EngineClient]:
    """The engine in its thread, loaded on entering, stopped on leaving."""

    def build() -> "LoadedEngine[Drafts]":
        # Imported here, in the engine's thread: torch takes seconds, and the ports are open meanwhile.
        from smartspec.composition import build_engine

        return build_engine(config, settings, clock=time.perf_counter)

    engine = AsyncEngine(build, config, settings, clock=time.perf_counter)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


if __name__ == "__main__":
    sys.exit(main())
