"""The paper's experiment on this machine: adaptive speculation against every fixed length, at several loads.

One server, one model pair, the same prompts: the policy is switched over the admin port, all policies take turns within
a round, and each round starts with another one, so that whatever else the machine does weighs on all alike. What is
printed are medians over rounds, with the losses beside the wins.

    make bench                                      # on the bundled pair, inflated to 190 M parameters
    python benchmarks/adaptive.py TARGET DRAFT --concurrency 1 8 32
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from aiohttp import ClientError, ClientSession
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from yarl import URL

from smartspec_demo.load import Clients, read_prompts
from smartspec_demo.monitor import parse

ROOT = Path(__file__).parents[1]
KEY = "benchmark"  # of a server that listens on loopback for the time of this run
READY_SECONDS = 180.0


@dataclass(frozen=True)
class Policy:
    """One way of speculating: a server-wide policy with its ceiling or length."""

    name: str
    policy: str
    num_tokens: int


POLICIES = (
    Policy("off", "off", 0),
    Policy("fixed 1", "fixed", 1),
    Policy("fixed 2", "fixed", 2),
    Policy("fixed 4", "fixed", 4),
    Policy("fixed 6", "fixed", 6),
    Policy("batch", "batch", 8),
    Policy("request", "request", 8),
)


@dataclass(frozen=True)
class Measurement:
    """One burst of *concurrency* clients, closed loop: tokens per second until its last prompt was sent, because from
    then on the load falls, and mean end-to-end latency in seconds of all its requests."""

    policy: str
    concurrency: int
    round: int
    tokens_per_second: float
    mean_latency_seconds: float


@asynccontextmanager
async def server(target: Path, draft: Path, arguments: Sequence[str]) -> AsyncIterator[tuple[URL, URL]]:
    """A `smartspec serve` of its own on free ports; its public and admin addresses once it is ready."""
    public, admin = _free_ports()
    command = [sys.executable, "-m", "smartspec", "serve", str(target), "--draft", str(draft), *arguments]
    command += ["--port", str(public), "--admin-port", str(admin), "--served-name", "model"]
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, stderr=log, env=os.environ | {"SMARTSPEC_ADMIN_KEY": KEY}
        )
        try:
            await _until_ready(URL(f"http://127.0.0.1:{public}/ready"), process)
            yield URL(f"http://127.0.0.1:{public}"), URL(f"http://127.0.0.1:{admin}")
        except TimeoutError:
            log.seek(0)
            raise SystemExit(f"the server did not start:\n{log.read().decode()[-2000:]}") from None
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def measure(
    target: Path, draft: Path, concurrencies: Sequence[int], rounds: int, tokens: int, arguments: Sequence[str]
) -> list[Measurement]:
    """Every policy at every concurrency, *rounds* times, in turns."""
    prompts = read_prompts((ROOT / "examples/models/prompts.jsonl").read_text())
    results: list[Measurement] = []
    generation = int(time.time())
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("measuring", total=len(concurrencies) * rounds * len(POLICIES))
        async with server(target, draft, arguments) as (url, admin), ClientSession() as session:
            clients = Clients(session, url, "model", prompts, clock=time.perf_counter)
            prompt = clients.prompts()
            for concurrency in concurrencies:
                # The first burst of a size pays for touching memory, and lets the models see the load: no one's time.
                await clients.burst(
                    prompts[:concurrency], phase="warm-up", mode="request", max_tokens=tokens, concurrency=concurrency
                )
                for turn in range(rounds):
                    work = list(islice(prompt, max(5, 2 * concurrency)))
                    for policy in (*POLICIES[turn % len(POLICIES) :], *POLICIES[: turn % len(POLICIES)]):
                        generation += 1
                        await _switch(session, admin, policy, generation)
                        phase = f"{policy.name}/{concurrency}/{turn}"
                        speed = await _burst(clients, session, url, work, phase, tokens, concurrency)
                        samples = [sample for sample in clients.samples if sample.phase == phase]
                        if failed := [sample.error for sample in samples if sample.error]:
                            raise SystemExit(f"{len(failed)} of {len(samples)} requests failed: {failed[0]}")
                        latency = sum(sample.latency for sample in samples) / len(samples)
                        results.append(Measurement(policy.name, concurrency, turn, speed, latency))
                        progress.update(bar, advance=1, description=f"{concurrency} at once, {policy.name}")
    return results


async def _burst(
    clients: Clients, session: ClientSession, url: URL, work: Sequence[str], phase: str, tokens: int, concurrency: int
) -> float:
    """Send all of *work*; tokens per second until the last prompt is sent."""
    sent = asyncio.Event()

    def until_sent() -> Iterator[str]:
        yield from work
        sent.set()

    before, started = await _tokens_kept(session, url), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        group.create_task(
            clients.burst(until_sent(), phase=phase, mode="request", max_tokens=tokens, concurrency=concurrency)
        )
        await sent.wait()
        during, seconds = await _tokens_kept(session, url) - before, time.perf_counter() - started
    return during / seconds


async def _tokens_kept(session: ClientSession, url: URL) -> float:
    async with session.get(url / "metrics") as answer:
        return parse(await answer.text()).counters.kept


def medians(results: Sequence[Measurement]) -> dict[int, dict[str, float]]:
    """Tokens per second by concurrency and policy."""
    return {
        concurrency: {
            policy.name: median(
                m.tokens_per_second for m in results if (m.concurrency, m.policy) == (concurrency, policy.name)
            )
            for policy in POLICIES
        }
        for concurrency in sorted({m.concurrency for m in results})
    }


def paired(results: Sequence[Measurement], concurrency: int, against: Sequence[str]) -> float:
    """The median over rounds of `request`'s speed over the best of *against* in the same round."""
    speeds = {(m.round, m.policy): m.tokens_per_second for m in results if m.concurrency == concurrency}
    rounds = {turn for turn, _ in speeds}
    return median(speeds[turn, "request"] / max(speeds[turn, name] for name in against) for turn in rounds)


def best_fixed(speeds: dict[str, float]) -> str:
    """The fixed length (off included) that was fastest in hindsight."""
    return max((name for name in speeds if name not in ("request", "batch")), key=speeds.__getitem__)


def markdown(results: Sequence[Measurement], machine: str) -> str:
    """The table as it stands in the results folder."""
    table = medians(results)
    head = " | ".join(f"{c} at once" for c in table)
    lines = [f"Output tokens per second on {machine}.", "", f"| policy | {head} |", "|---|" + "---|" * len(table)]
    for policy in POLICIES:
        cells = " | ".join(f"{speeds[policy.name]:.0f}" for speeds in table.values())
        lines.append(f"| {policy.name} | {cells} |")
    fixed = {c: best_fixed(speeds) for c, speeds in table.items()}
    lines.append("| `request` / off | " + " | ".join(f"{paired(results, c, ['off']):.2f}" for c in table) + " |")
    lines.append(
        "| `request` / best fixed in hindsight | "
        + " | ".join(f"{paired(results, c, [fixed[c]]):.2f} ({fixed[c]})" for c in table)
        + " |"
    )
    return "\n".join(lines) + "\n"


def machine_name() -> str:
    """Processor and cores of this machine."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", type=Path, nargs="?", default=ROOT / ".cache/models/stdlib-target-190m")
    parser.add_argument("draft", type=Path, nargs="?", default=ROOT / "examples/models/stdlib-draft")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="per request")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/out", help="folder for the results")
    options, arguments = parser.parse_known_args()
    results = asyncio.run(
        measure(options.target, options.draft, options.concurrency, options.rounds, options.tokens, arguments)
    )
    machine = machine_name()
    text = markdown(results, machine)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "adaptive.md").write_text(text)
    record = {
        "machine": machine,
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "target": options.target.name,
        "draft": options.draft.name,
        "tokens_per_request": options.tokens,
        "server_arguments": arguments,
        "measurements": [asdict(result) for result in results],
    }
    (options.output / "adaptive.json").write_text(json.dumps(record, indent=1) + "\n")
    _show(results, machine)


def _show(results: Sequence[Measurement], machine: str) -> None:
    table = Table(title=f"Output tokens per second, {machine}")
    table.add_column("policy")
    by_load = medians(results)
    for concurrency in by_load:
        table.add_column(f"{concurrency} at once", justify="right")
    for policy in POLICIES:
        best = [max(speeds.values()) for speeds in by_load.values()]
        shown = [(speeds[policy.name], top) for speeds, top in zip(by_load.values(), best, strict=True)]
        table.add_row(
            policy.name, *(f"[bold]{speed:.0f}[/]" if speed == top else f"{speed:.0f}" for speed, top in shown)
        )
    table.add_section()
    table.add_row("request / off", *(f"{paired(results, c, ['off']):.2f}" for c in by_load))
    fixed = {c: best_fixed(speeds) for c, speeds in by_load.items()}
    table.add_row("request / best fixed", *(f"{paired(results, c, [fixed[c]]):.2f} ({fixed[c]})" for c in by_load))
    Console().print(table)


async def _switch(session: ClientSession, admin: URL, policy: Policy, generation: int) -> None:
    body = {"generation": generation, "policy": policy.policy, "max_speculative_tokens": policy.num_tokens}
    async with session.put(admin / "policy", json=body, headers={"Authorization": f"Bearer {KEY}"}) as answer:
        if answer.status != 200:
            raise SystemExit(f"PUT /policy: HTTP {answer.status}: {await answer.text()}")


async def _until_ready(url: URL, process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + READY_SECONDS
    async with ClientSession() as session:
        while time.monotonic() < deadline and process.returncode is None:
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except ClientError:
                pass
            await asyncio.sleep(0.2)
    raise TimeoutError


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(two.getsockname()[1])


if __name__ == "__main__":
    main()
