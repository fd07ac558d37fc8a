"""Replicas as supervised processes: real ones, of a runtime without a model."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession

from smartspec_operator.local_process import Backoff, Launch, Ports, ReplicaProcess
from waiting import until

FAKE = Path(__file__).with_name("fake_runtime.py")


def launch(folder: Path, target: str = "model", **more: object) -> Launch:
    """The fake runtime on *target*."""

    def command(ports: Ports) -> list[str]:
        arguments = ["serve", str(folder / target), "--port", str(ports.public), "--admin-port", str(ports.admin)]
        return [sys.executable, str(FAKE), *arguments]

    defaults = {"environment": {"SMARTSPEC_ADMIN_KEY": "key"}, "log": folder / "log", "backoff": Backoff(0.05)}
    return Launch(command, **{**defaults, **more})  # type: ignore[arg-type]


Start = Callable[..., ReplicaProcess]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts replicas, and stops them after the test."""
    started: list[ReplicaProcess] = []
    async with ClientSession() as session:

        def start(target: str = "model", **more: object) -> ReplicaProcess:
            replica = ReplicaProcess("a", launch(tmp_path, target, **more), session=session, on_change=lambda: None)
            replica.start()
            started.append(replica)
            return replica

        yield start
        await asyncio.gather(*(replica.stop() for replica in started))


def is_alive(process_id: int) -> bool:
    """Whether the process exists (zombies count: they must have been reaped)."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_replica_becomes_ready_and_ends_when_stopped(start: Start) -> None:
    """Ready when it says so itself; after `stop` the process is gone."""
    replica = start()
    assert not replica.ready
    await until(lambda: replica.ready)
    process_id = replica.process_id
    assert process_id is not None
    await replica.stop()
    assert (replica.state, replica.ready, replica.url) == ("Gone", False, None)
    assert not is_alive(process_id)


async def test_a_crash_is_restarted_and_explained(start: Start) -> None:
    """The message holds the exit status and what the process said last; the next run is on other ports."""
    replica = start("crash-once")
    await until(lambda: replica.state == "CrashLoopBackOff")
    assert replica.message.startswith("exited with status 1; error: no weights in ")
    await until(lambda: replica.ready)
    assert replica.restarts == 1


async def test_a_killed_replica_is_restarted(start: Start) -> None:
    """What a SIGKILL from outside ends comes back, and is not ready until it is."""
    replica = start()
    await until(lambda: replica.ready)
    first = replica.process_id
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: replica.state == "CrashLoopBackOff")
    assert not replica.ready
    assert replica.message.startswith("killed by SIGKILL")
    await until(lambda: replica.ready)
    assert replica.process_id != first


async def test_stopping_lets_requests_in_hand_finish(start: Start) -> None:
    """SIGTERM first: the stream that runs comes to its end."""
    replica = start()
    await until(lambda: replica.ready)
    async with ClientSession() as session:
        async with session.post(f"{replica.url}/v1/completions", json={"max_tokens": 40}) as answer:
            await answer.content.readline()
            _, text = await asyncio.gather(replica.stop(), answer.text())
    assert text.endswith("data: [DONE]\n\n")


async def test_a_replica_that_ignores_sigterm_is_killed_after_its_grace(start: Start) -> None:
    """Grace is bounded: a request longer than it does not keep the process."""
    replica = start(grace_seconds=0.3)
    await until(lambda: replica.ready)
    process_id = replica.process_id
    assert process_id is not None
    async with ClientSession() as session:
        async with session.post(f"{replica.url}/v1/completions", json={"max_tokens": 10_000}):
            await asyncio.wait_for(replica.stop(), 5)
    assert not is_alive(process_id)


async def test_a_replica_waiting_for_its_restart_stops_at_once(start: Start) -> None:
    """There is nothing to wait for."""
    replica = start("crash", backoff=Backoff(initial_seconds=60))
    await until(lambda: replica.state == "CrashLoopBackOff")
    await asyncio.wait_for(replica.stop(), 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent's life")
async def test_no_replica_outlives_a_killed_operator() -> None:
    """SIGKILL leaves the operator no time to clean up; the kernel does it."""
    program = (
        "import asyncio, os, sys\n"
        "async def main():\n"
        "    command = [sys.executable, '-m', 'smartspec_operator.local_child', str(os.getpid()), 'sleep', '60']\n"
        "    quiet = asyncio.subprocess.DEVNULL\n"
        "    child = await asyncio.create_subprocess_exec(*command, stdout=quiet, start_new_session=True)\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    operator = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert operator.stdout is not None
    child = int(await operator.stdout.readline())
    await until(lambda: Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"sleep"))
    operator.kill()
    await operator.wait()
    # Whoever adopts the orphan may take its time to reap it: a zombie is as good as gone.
    await until(lambda: not is_alive(child) or "State:\tZ" in Path(f"/proc/{child}/status").read_text())


def test_backoff_doubles_up_to_its_bound_and_forgets_after_a_long_run() -> None:
    """1, 2, 4 ... 30 seconds; a run of a minute starts over."""
    backoff = Backoff(initial_seconds=1, maximum_seconds=30, reset_after_seconds=60)
    delays = [0.0]
    for _ in range(7):
        delays.append(backoff.next(delays[-1], ran_seconds=1))
    assert delays[1:] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.next(30, ran_seconds=60) == 1
