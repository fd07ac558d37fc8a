"""How a benchmark goes about it: a record, a fleet, a time budget, and progress on standard error."""

import argparse
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from smartspec.loadgen.counters import counters, difference
from smartspec_bench.exposition import condensed
from smartspec_bench.load import Run
from smartspec_bench.prompts import ROOT
from smartspec_bench.record import Record, machine_slug
from smartspec_bench.servers import Server


@dataclass
class Budget:
    """Minutes that a benchmark may take, servers' starts included; blocks that would not end in time are left out.

    A block's time is guessed from the last one of its kind, or as its maker says.
    """

    minutes: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._seen: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self._started

    def allows(self, kind: str, guess: float) -> bool:
        """Whether a block of *kind* would still end in time."""
        return self.elapsed + self._seen.get(kind, guess) <= 60 * self.minutes

    def took(self, kind: str, seconds: float) -> None:
        """Learn how long a block of *kind* takes."""
        self._seen[kind] = seconds


class Session:
    """Takes runs into a record."""

    def __init__(self, record: Record, budget: Budget, total: int) -> None:
        self.record, self.budget = record, budget
        self._console = Console(stderr=True, highlight=False)
        self._total = total

    def say(self, text: str) -> None:
        """A line of progress with the time since the start."""
        minutes, seconds = divmod(int(self.budget.elapsed), 60)
        self._console.print(f"[dim]{minutes:3d}:{seconds:02d}[/]  {text}", soft_wrap=True)

    async def take(
        self,
        server: Server,
        send: Callable[[], Awaitable[Run]],
        labels: Mapping[str, str | int],
        parts: Sequence[tuple[str, int, int]] = (),
    ) -> Run:
        """One run on a server that is awake, kept with what the server counted meanwhile; *parts* name stretches of its
        requests, by the indices from and to."""
        before = counters(await server.metrics())
        run = await send()
        after = counters(await server.metrics())
        kept = {
            "key": key(labels),
            **labels,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "mean_latency_seconds": round(run.mean_latency, 4),
            "tokens_per_second": round(run.tokens_per_second, 1),
            "seconds": round(run.seconds, 3),
            "tokens": run.tokens,
            "parts": parts,
            "latencies": [round(latency, 4) for latency in run.latencies],
            "lateness_seconds": round(run.lateness, 4),
            "client_cpu_seconds": round(run.client_cpu_seconds, 3),
            "stolen_seconds": run.stolen_seconds,
            "counters": difference(before, after),
            "speculation": condensed(await server.speculation()),
        }
        self.record.add(kept)
        self.say(
            f"[dim]{len(self.record.runs):4d}/{self._total}[/] {kept['key']:44s} "
            f"{run.mean_latency:6.2f} s  {run.tokens_per_second:6.0f} tok/s"
        )
        return run


def key(labels: Mapping[str, str | int]) -> str:
    """The text that names a run."""
    return " ".join(str(value) for value in labels.values())


def add_options(parser: argparse.ArgumentParser, *, minutes: float) -> None:
    """The options that the benchmarks share."""
    parser.add_argument("--target", type=Path, default=ROOT / ".cache/models/stdlib-target-190m")
    parser.add_argument("--draft", type=Path, default=ROOT / "examples/models/stdlib-draft")
    parser.add_argument("--minutes", type=float, default=minutes, help=f"time to keep to ({minutes:g})")
    parser.add_argument("--rounds", type=int, default=10, help="most rounds, however much time there is (10)")
    parser.add_argument("--quick", action="store_true", help="a few requests of everything, to see that it works")
    parser.add_argument("--fresh", action="store_true", help="do not go on with the runs that are already recorded")
    parser.add_argument(
        "--machine", default=machine_slug(), help=f"name of this machine in the files ({machine_slug()})"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the results (benchmarks/results; --quick: benchmarks/out)"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write table and picture of what there is"
    )


def output_path(options: argparse.Namespace, name: str) -> Path:
    """Where the record of benchmark *name* goes."""
    folder = options.output or ROOT / ("benchmarks/out" if options.quick else "benchmarks/results")
    return Path(folder) / f"{name}-{options.machine}.json"


def rounds_of(runs: Iterable[dict[str, Any]], **labels: Any) -> dict[int, dict[str, Any]]:
    """The runs with these labels, by round."""
    return {run["round"]: run for run in runs if all(run.get(name) == value for name, value in labels.items())}


def share_of_others(runs: Sequence[dict[str, Any]]) -> str:
    """A sentence on what the servers did not get of the machine."""
    client = max(run["client_cpu_seconds"] / run["seconds"] for run in runs)
    stolen = sum(run["stolen_seconds"] for run in runs) / sum(run["seconds"] for run in runs)
    return (
        f"The load generator took at most {client:.1%} of one core; the host's other tenants took {stolen:.1%} of one."
    )
