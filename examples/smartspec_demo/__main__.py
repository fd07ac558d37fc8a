"""`make demo`: serve the bundled pair under a changing load, show it, measure it, judge it."""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector
from rich.console import Console
from yarl import URL

from smartspec.config import ConfigError
from smartspec.loadgen.prompts import texts
from smartspec_demo.load import Clients
from smartspec_demo.monitor import Monitor
from smartspec_demo.scenario import Course, DemoError, Scenario, Script
from smartspec_demo.summary import summarize, verdicts
from smartspec_demo.table import view

EXAMPLES = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
STOP_SECONDS = 30.0
LONGEST_PROMPT_CHARACTERS = 400
TITLE = "SmartSpec: the stdlib pair, inflated to 190 M parameters, under a changing load"


@asynccontextmanager
async def operator(resource: Path, folder: Path) -> AsyncIterator[Process]:
    """`smartspec-operator local` on *resource*, its status and log in *folder*; stopped, with all replicas, at exit."""
    command = [
        sys.executable, "-m", "smartspec_operator.local_child", str(os.getpid()),  # dies with the demo, however it ends
        sys.executable, "-m", "smartspec_operator", "local", str(resource),
        "--port", "0", "--status-file", str(folder / "status.json"), "--folder", str(folder / "local"),
    ]  # fmt: skip
    (folder / "status.json").unlink(missing_ok=True)  # what an earlier run left would be taken for this one's
    with (folder / "operator.log").open("wb") as log:
        # A group of its own: Ctrl-C reaches the demo alone, which stops the operator when its requests are done.
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def started(process: Process, monitor: Monitor, folder: Path) -> URL:
    """The front's URL once a replica is ready; raises `DemoError` when none becomes so."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.returncode is None:
        status = monitor.status()
        pods = status.get("pods", ())
        if any(pod["ready"] for pod in pods):
            return URL(status["url"])
        if hopeless := [pod["state"] for pod in pods if pod["restarts"] > 1]:
            raise DemoError(f"the first replica does not start: {hopeless[0]}")
        await asyncio.sleep(0.2)
    last = (folder / "operator.log").read_text(errors="replace").strip().splitlines()[-3:]
    raise DemoError("no replica became ready; the operator said:\n  " + "\n  ".join(last or ["nothing"]))


async def play(resource: Path, prompts: list[str], folder: Path, script: Script, console: Console) -> dict[str, Any]:
    """Play *script* and write the summary and the picture into *folder*; returns the summary."""
    began = time.monotonic()
    playing = asyncio.current_task()
    assert playing is not None
    # A polite end (`timeout`, a CI runner) leaves no server behind: as Ctrl-C, which asyncio turns into the same.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)

    def clock() -> float:
        return time.monotonic() - began

    connector = TCPConnector(limit=0)
    async with ClientSession(connector=connector, timeout=ClientTimeout(total=120)) as session:
        monitor = Monitor(session, folder / "status.json", clock)
        async with operator(resource, folder) as process:
            console.print("Starting the first replica ...", style="dim")
            url = await started(process, monitor, folder)
            model = monitor.status()["model"]
            clients = Clients(session, url, model, prompts, clock=clock)
            with view(console, TITLE) as shown:
                watching = asyncio.create_task(monitor.run(lambda _: shown.show(monitor.snapshots, clients.samples)))
                try:
                    course = await Scenario(clients, monitor, script, clock).play()
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
    return write(folder, clients, monitor, course)


def write(folder: Path, clients: Clients, monitor: Monitor, course: Course) -> dict[str, Any]:
    """Write `summary.json` and `demo.png`; returns the summary."""
    from smartspec_demo import figure  # matplotlib takes a second to import: not before the clients are done

    summary = summarize(clients.samples, monitor.snapshots, course, hardware())
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    figure.draw(folder / "demo.png", clients.samples, monitor.snapshots, course.phases, summary)
    return summary


def hardware() -> dict[str, Any]:
    """What all numbers were measured on."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {"model": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def report(console: Console, summary: dict[str, Any], folder: Path) -> int:
    """Say which claims held; the exit status is 0 when all did."""
    claims = verdicts(summary)
    for claim in claims:
        mark = "[bold green]held  [/]" if claim.held else "[bold red]MISSED[/]"
        console.print(f"{mark} {claim.text}: {claim.measured}", highlight=False, soft_wrap=True)
    console.print(f"{folder / 'summary.json'} and {folder / 'demo.png'} are written.", highlight=False)
    return 0 if all(claim.held for claim in claims) else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 when every claim held."""
    parser = argparse.ArgumentParser(prog="smartspec_demo", description=__doc__)
    parser.add_argument("--resource", type=Path, default=EXAMPLES / "demo.yaml", help="the SmartSpec to apply")
    parser.add_argument("--prompts", type=Path, default=EXAMPLES / "models" / "prompts.jsonl", help="JSON Lines")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for what the demo writes")
    told = parser.parse_args(arguments)
    told.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    try:
        # Long ones would make equal requests unequal work.
        prompts = [text for text in texts(told.prompts) if len(text) <= LONGEST_PROMPT_CHARACTERS]
        summary = asyncio.run(play(told.resource, prompts, told.out, Script(), console))
    except (DemoError, ConfigError, OSError) as error:
        console.print(f"error: {error}", style="red", highlight=False)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return report(console, summary, told.out)


if __name__ == "__main__":
    sys.exit(main())
