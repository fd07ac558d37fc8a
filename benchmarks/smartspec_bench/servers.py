"""Servers under test: real processes, each in a group of its own, of which only one ever runs.

Those that wait are stopped (SIGSTOP), not idle: an engine that polls, or a runtime whose threads spin, then costs the
one being measured nothing, and modes can take turns without starting anew.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout
from yarl import URL

from smartspec_bench.load import MODEL

READY_SECONDS = 600.0
STOP_SECONDS = 15.0
ADMIN_KEY = "benchmark"  # of servers that listen on loopback for the time of this run


class StartError(Exception):
    """A server that did not become ready, with the end of its log."""


@dataclass(frozen=True)
class Launch:
    """How to start a server: `{port}` and `{admin_port}` in *command* become free ports; *ready* is a path."""

    name: str
    command: tuple[str, ...]
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)
    has_admin: bool = False


class Server:
    """A started process group; paused and resumed as a whole."""

    def __init__(self, launch: Launch, log: Path) -> None:
        self.launch, self.log = launch, log
        self.paused = False
        self._generation = 0
        port, admin_port = _free_ports(2)
        self.url = URL(f"http://127.0.0.1:{port}")
        self.admin_url = URL(f"http://127.0.0.1:{admin_port}")
        command = [
            part.format(port=port, admin_port=admin_port) if "port}" in part else part for part in launch.command
        ]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.process = Popen(
                command, stdout=output, stderr=output, env=_environment(launch.environment), start_new_session=True
            )

    async def wait_ready(self) -> None:
        """Return when it answers; raises StartError."""
        deadline = time.monotonic() + READY_SECONDS
        async with ClientSession(timeout=ClientTimeout(total=5)) as session:
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    async with session.get(self.url / self.launch.ready) as answer:
                        if answer.status == 200:
                            return
                except (ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.25)
        raise StartError(f"{self.launch.name} did not become ready; the end of {self.log}:\n{self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def pause(self) -> None:
        """Take the processor from the whole group; returns when it has stopped (or ended)."""
        self._signal(signal.SIGSTOP)
        if self.process.poll() is None:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self.paused = True

    def resume(self) -> None:
        """Give it back."""
        self._signal(signal.SIGCONT)
        self.paused = False

    def stop(self) -> None:
        """End the group: asked first, then not."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self._signal(signal.SIGKILL)
        self.process.wait()

    async def metrics(self) -> str:
        """Its exposition; empty where it has none."""
        async with ClientSession() as session, session.get(self.url / "metrics") as answer:
            return await answer.text() if answer.status == 200 else ""

    async def speculation(self) -> dict[str, Any]:
        """What its policy says of itself, where it is ours."""
        return await self._admin("GET", "speculation") if self.launch.has_admin else {}

    async def set_policy(self, policy: str, num_tokens: int) -> None:
        """Swap the policy between two steps; *num_tokens* is a ceiling, or the length of a fixed one."""
        self._generation += 1
        settings = {"generation": self._generation, "policy": policy, "max_speculative_tokens": num_tokens}
        await self._admin("PUT", "policy", json=settings)

    async def _admin(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        async with ClientSession(headers=headers) as session:
            async with session.request(method, self.admin_url / path, **arguments) as answer:
                text = await answer.text()
                if answer.status != 200:
                    raise StartError(f"{method} /{path}: HTTP {answer.status}: {text}")
                data: dict[str, Any] = json.loads(text)
                return data

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # ended by itself: who waits for it will say so
            os.killpg(self.process.pid, number)


class Fleet:
    """The servers of a benchmark: one awake at a time."""

    def __init__(self, logs: Path) -> None:
        self.servers: dict[str, Server] = {}
        self._logs = logs

    async def start(self, launches: Sequence[Launch]) -> None:
        """Start *launches* side by side while all others rest, then put them to rest too."""
        started = [Server(launch, self._logs / f"{launch.name}.log") for launch in launches]
        self.servers |= {server.launch.name: server for server in started}
        async with asyncio.TaskGroup() as group:
            for server in started:
                group.create_task(server.wait_ready())
        for server in started:
            server.pause()

    def wake(self, name: str) -> Server:
        """The server *name*, running, all others stopped."""
        for server in self.servers.values():
            if server.launch.name != name and not server.paused:
                server.pause()
        if self.servers[name].paused:
            self.servers[name].resume()
        return self.servers[name]

    def stop(self) -> None:
        """End all."""
        for server in self.servers.values():
            server.stop()


@contextmanager
def fleet(logs: Path) -> Iterator[Fleet]:
    """A fleet that is gone when the context ends, however it ends: asked to terminate, this process ends the context
    first, for stopped servers would stay behind for ever."""
    servers = Fleet(logs)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield servers
    finally:
        signal.signal(signal.SIGTERM, before)
        servers.stop()


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def smartspec(name: str, target: Path, *arguments: str) -> Launch:
    """`smartspec serve TARGET` on as many threads as this process has cores."""
    command = (
        *(sys.executable, "-m", "smartspec", "serve", str(target), "--served-name", MODEL, "--dtype", "bfloat16"),
        *(
            "--threads",
            str(len(cores())),
            "--kv-cache-memory",
            "1GiB",
            "--port",
            "{port}",
            "--admin-port",
            "{admin_port}",
        ),
        *arguments,
    )
    return Launch(name, command, "ready", {"SMARTSPEC_ADMIN_KEY": ADMIN_KEY}, has_admin=True)


def assisted(target: Path, draft: Path) -> Launch:
    """`transformers`' assisted generation behind a queue, one request at a time."""
    command = (sys.executable, "-m", "smartspec_bench.assisted", str(target), str(draft), "--port", "{port}")
    here = str(Path(__file__).parents[1])
    threads = str(len(cores()))
    return Launch("transformers", command, "ready", {"PYTHONPATH": here, "OMP_NUM_THREADS": threads})


def cores() -> list[int]:
    """The processors this run may use, and with it every server."""
    return sorted(os.sched_getaffinity(0))


def available_gib() -> float:
    """Memory that new processes may have, in GiB (proc(5), `MemAvailable`)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without what would tilt the comparison: each server sizes its own thread pools."""
    tilting = ("OMP_", "MKL_", "KMP_", "VLLM_", "LD_PRELOAD")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tilting)}
    return kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | dict(extra)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
