"""`smartspec-operator local` as a process: from a file to answers, through edits, crashes and Ctrl-C."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from smartspec_operator import local
from smartspec_operator.front import REPLICA_HEADER
from smartspec_operator.local_cores import available_cores
from smartspec_operator.resource import parse
from waiting import until

COMMAND = [sys.executable, str(Path(__file__).with_name("local_with_fake_runtime.py"))]
TEXT = """\
apiVersion: smartspec.io/v1alpha1
kind: SmartSpec
metadata: {name: demo}
spec:
  model: {source: model, servedName: demo}
  replicas: 1
"""


@dataclass
class Local:
    """A running `local` with the file that it serves and what it says."""

    file: Path
    log: Path
    process: Process
    session: ClientSession

    @property
    def state(self) -> dict[str, Any]:
        """The status file; empty while there is none."""
        path = self.file.with_name("status.json")
        return json.loads(path.read_text()) if path.exists() else {}

    def ready(self) -> list[dict[str, Any]]:
        """The pods that serve."""
        return [pod for pod in self.state.get("pods", []) if pod["ready"]]

    def condition(self, kind: str) -> dict[str, Any]:
        """One condition of the resource's status."""
        found = [c for c in self.state.get("status", {}).get("conditions", []) if c["type"] == kind]
        return found[0] if found else {}

    async def complete(self, max_tokens: int = 2) -> str:
        """Ask for text through the front; returns the name of the replica, once the whole text has come."""
        url = f"{self.state['url']}/v1/completions"
        async with self.session.post(url, json={"prompt": "a", "max_tokens": max_tokens}) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert text.endswith("data: [DONE]\n\n")
            return answer.headers[REPLICA_HEADER]

    def process_ids(self) -> list[int]:
        """Of the replicas."""
        return [pod["process_id"] for pod in self.state["pods"] if pod["process_id"]]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Local]:
    """`local` with one ready replica."""
    file = tmp_path / "demo.yaml"
    file.write_text(TEXT)
    flags = ["--port", "0", "--tick", "0.2", "--status-file", str(tmp_path / "status.json"), "--folder", str(tmp_path)]
    log = tmp_path / "out.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*COMMAND, str(file), *flags, stdout=out)
    async with ClientSession() as session:
        here = Local(file, log, process, session)
        try:
            await until(here.ready)
            yield here
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 15)


def is_alive(process_id: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{process_id}").exists()


async def test_a_file_becomes_an_endpoint(running: Local) -> None:
    """Requests are answered and the status says that all is well, under the URL that works here."""
    name = await running.complete()
    assert [pod["name"] for pod in running.ready()] == [name]
    await until(lambda: running.condition("Ready").get("status") == "True")
    assert running.state["status"]["url"] == f"{running.state['url']}/v1"
    assert running.state["status"]["readyReplicas"] == 1


async def test_a_saved_edit_is_applied_and_no_request_fails_meanwhile(running: Local) -> None:
    """Two replicas, then one again: a long request that the leaving replica has in hand comes to its end."""
    running.file.write_text(TEXT.replace("replicas: 1", "replicas: 2"))
    await until(lambda: len(running.ready()) == 2)
    names = {await running.complete() for _ in range(4)}
    assert len(names) == 2
    long = [asyncio.create_task(running.complete(max_tokens=300)) for _ in range(2)]
    await until(lambda: sum(running.state["front"]["outstanding"].values()) == 2)
    running.file.write_text(TEXT)
    await until(lambda: len(running.ready()) == 1)
    (left,) = (pod["name"] for pod in running.ready())
    assert await running.complete() == left
    assert set(await asyncio.gather(*long)) == names
    await until(lambda: len(running.state["pods"]) == 1)


async def test_an_invalid_edit_changes_nothing_that_runs_and_is_named(running: Local) -> None:
    """Ready=False InvalidSpec with the field, while the replica goes on; the corrected file is taken."""
    before = running.process_ids()
    running.file.write_text(TEXT.replace("replicas: 1", "replicas: many"))
    await until(lambda: running.condition("Ready").get("reason") == "InvalidSpec")
    assert "spec.replicas" in running.condition("Ready")["message"]
    await running.complete()
    assert running.process_ids() == before
    running.file.write_text(TEXT)
    await until(lambda: running.condition("Ready").get("status") == "True")


async def test_a_crash_under_an_invalid_edit_is_shown_too(running: Local) -> None:
    """The file before it is carried on: what it asked for is watched, and started again."""
    running.file.write_text(TEXT.replace("replicas: 1", "replicas: many"))
    await until(lambda: running.condition("Ready").get("reason") == "InvalidSpec")
    (process_id,) = running.process_ids()
    os.kill(process_id, signal.SIGKILL)
    await until(lambda: running.condition("Degraded").get("reason") == "CrashLoopBackOff")
    await until(lambda: running.condition("Available").get("status") == "True")
    assert running.condition("Ready")["reason"] == "InvalidSpec"
    assert running.process_ids() != [process_id]


async def test_a_crash_is_shown_and_healed(running: Local) -> None:
    """The reason is raised to the resource's conditions; the replica comes back and serves."""
    (process_id,) = running.process_ids()
    os.kill(process_id, signal.SIGKILL)
    await until(lambda: running.condition("Degraded").get("reason") == "CrashLoopBackOff")
    assert "killed by SIGKILL" in running.condition("Degraded")["message"]
    await until(running.ready)
    await running.complete()
    assert running.process_ids() != [process_id]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_all_and_lets_requests_finish(running: Local, number: signal.Signals) -> None:
    """Exit status 0, the stream in hand complete, and no process left."""
    processes = running.process_ids()
    asking = asyncio.create_task(running.complete(max_tokens=100))
    await until(lambda: sum(running.state["front"]["outstanding"].values()) == 1)
    running.process.send_signal(number)
    await asking
    assert await asyncio.wait_for(running.process.wait(), 10) == 0
    assert not [process_id for process_id in processes if is_alive(process_id)]


async def test_a_second_signal_waits_for_nothing(running: Local) -> None:
    """A request that would go on for a minute does not hold up whoever is in a hurry."""
    processes = running.process_ids()
    asking = asyncio.create_task(running.complete(max_tokens=10_000))
    await until(lambda: sum(running.state["front"]["outstanding"].values()) == 1)
    running.process.send_signal(signal.SIGINT)
    await until(lambda: "stopping" in running.log.read_text())
    running.process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(running.process.wait(), 8) == 0
    assert not [process_id for process_id in processes if is_alive(process_id)]
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_file_that_is_no_good_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    """One line on stderr and status 2, never a traceback."""
    file = tmp_path / "demo.yaml"
    file.write_text(TEXT.replace("source: model", "source: ''"))
    command = [sys.executable, "-m", "smartspec_operator", "local", str(file), "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        _, told = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.terminate()
    assert process.returncode == 2
    assert told.decode().startswith("error: spec.model.source: ")
    assert len(told.decode().splitlines()) == 1


@pytest.mark.parametrize(("scale", "share"), [({}, 1), ({"replicas": 2}, 2), ({"autoscaling": {"maxReplicas": 3}}, 3)])
def test_replicas_share_the_cores_as_if_all_of_them_ran(scale: dict[str, Any], share: int) -> None:
    """From its start a replica has what it will have when there are as many as there may be."""
    owner = parse({"metadata": {"name": "demo"}, "spec": {"model": {"source": "m"}, **scale}})
    assert local._threads(owner) == max(1, available_cores() // share)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"a/b/cpu.max": "100000 100000"}, 1),
        ({"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ({"cpu/a/b/cpu.cfs_quota_us": "100000", "cpu/a/b/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quotas_bound_the_cores(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    """Of this cgroup and those above it, in both versions; None: affinity alone decides."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n" if not any("cfs" in name for name in files) else "4:cpu,cpuacct:/a/b\n")
    found = available_cores(tmp_path, membership)
    affinity = len(os.sched_getaffinity(0))
    assert found == (affinity if cores is None else min(cores, affinity))
