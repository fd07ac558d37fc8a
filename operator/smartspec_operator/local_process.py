"""One replica as a process on this machine: own ports, probed, restarted with backoff, ended with grace.

What a kubelet is to a pod's container, with the same words for the same things.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aiohttp import ClientSession
from yarl import URL

from smartspec_operator.front import is_ready

State = Literal["Starting", "Running", "CrashLoopBackOff", "Terminating", "Gone"]

PROBE_PERIOD_SECONDS = 0.25
LOG_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one run of a replica listens on loopback; another run gets others."""

    public: int
    admin: int


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a restart: doubling, and forgotten after a run that lasted."""

    initial_seconds: float = 1.0
    maximum_seconds: float = 30.0
    reset_after_seconds: float = 60.0

    def next(self, previous_seconds: float, ran_seconds: float) -> float:
        """The delay after a run of *ran_seconds* that had been preceded by a delay of *previous_seconds*."""
        if previous_seconds == 0 or ran_seconds >= self.reset_after_seconds:
            return self.initial_seconds
        return min(2 * previous_seconds, self.maximum_seconds)


@dataclass(frozen=True)
class Launch:
    """How to start a replica: its command once its ports are known, what to add to the environment, where to log."""

    command: Callable[[Ports], Sequence[str]]
    environment: Mapping[str, str]
    log: Path
    grace_seconds: float = 30.0
    backoff: Backoff = Backoff()


class ReplicaProcess:
    """Keeps one replica running from `start` until `stop`; *on_change* is called after each change of its state.

    `ready` follows the replica's own `/ready`; `was_ready` tells draining from starting. `message` says why it last
    ended, with the end of its log.
    """

    def __init__(self, name: str, launch: Launch, *, session: ClientSession, on_change: Callable[[], None]) -> None:
        self.name = name
        self.state: State = "Starting"
        self.ready = False
        self.was_ready = False
        self.restarts = 0
        self.message = ""
        self.ports: Ports | None = None
        self.process_id: int | None = None
        self._launch = launch
        self._session = session
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._stopping = False

    @property
    def url(self) -> URL | None:
        """The public URL, None while there is no process."""
        return URL(f"http://127.0.0.1:{self.ports.public}") if self.ports else None

    @property
    def admin_url(self) -> URL | None:
        """The admin URL, None while there is no process."""
        return URL(f"http://127.0.0.1:{self.ports.admin}") if self.ports else None

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run(), name=f"replica {self.name}")

    async def stop(self) -> None:
        """Send SIGTERM, let the replica finish what it has, and kill it when its grace is over."""
        self._stopping = True
        if self.state != "Gone":
            self._become("Terminating", ready=False)
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), self._launch.grace_seconds)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._become("Gone", ready=False)

    def kill(self) -> None:
        """Cut a grace short: `stop`, which must have been called, then returns at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _run(self) -> None:
        delay = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            code = await self._run_once()
            if self._stopping:
                return
            delay = self._launch.backoff.next(delay, clock() - started)
            self.message = f"{_ending(code)}; {_last_line(self._launch.log)}"
            self._become("CrashLoopBackOff", ready=False)
            await asyncio.sleep(delay)
            self.restarts += 1
            self._become("Starting", ready=False)

    async def _run_once(self) -> int:
        """Start the command and return its exit status (negative: the signal that ended it) when it has ended."""
        self.ports = free_ports()
        child = [sys.executable, "-m", "smartspec_operator.local_child", str(os.getpid())]
        with self._launch.log.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *child,
                *self._launch.command(self.ports),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._launch.environment},
                # Its own group: Ctrl-C in a terminal reaches us alone, and we drain; and what it starts ends with it.
                start_new_session=True,
            )
        self.process_id = process.pid
        self._become("Running", ready=False)
        probing = asyncio.create_task(self._probe())
        try:
            return await process.wait()
        finally:
            probing.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.returncode is None:
                await process.wait()
            self.ports = self.process_id = None

    async def _probe(self) -> None:
        while self.state == "Running" and self.url is not None:
            ready = await is_ready(self._session, self.url)
            if ready != self.ready and self.state == "Running":
                self._become("Running", ready=ready)
            await asyncio.sleep(PROBE_PERIOD_SECONDS)

    def _become(self, state: State, *, ready: bool) -> None:
        if (state, ready) != (self.state, self.ready):
            self.state, self.ready = state, ready
            self.was_ready = ready or (self.was_ready and state in ("Running", "Terminating"))
            self._on_change()


def free_ports() -> Ports:
    """Two ports of loopback that nobody listens on now.

    Somebody may take one before the replica does; it then fails to start and is restarted with others.
    """
    with socket.socket() as public, socket.socket() as admin:
        public.bind(("127.0.0.1", 0))
        admin.bind(("127.0.0.1", 0))
        return Ports(public.getsockname()[1], admin.getsockname()[1])


def _ending(code: int) -> str:
    return f"exited with status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _last_line(log: Path) -> str:
    """The last line that says something, where Python puts the exception's message and servers their reason."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it logged nothing"
