"""Regret in simulated time: what the policies lose to the fixed length that turns out best, 0 included.

The real policy steps through worlds that are not its own model: measured stairs, lognormal noise and stragglers, an
effect of context it does not know, texts whose acceptance is correlated, differs between requests and drifts. All modes
meet the same requests and texts. No model and no GPU is needed; results do not depend on the machine.

    python benchmarks/regret.py                                       # some 8 minutes on four cores
    python benchmarks/regret.py --worlds "16 clients" --seeds 2       # one of them
    python benchmarks/regret.py --quick                               # a little of everything, to see that it works
"""

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from smartspec.policy.settings import PolicyName
from smartspec_bench import regret_report
from smartspec_bench.prompts import ROOT
from smartspec_bench.record import Record, RecordError, machine_slug, versions_of
from smartspec_bench.regret_worlds import CEILING, WORLDS, run

MODES: tuple[tuple[PolicyName, int], ...] = (
    ("off", 0),
    *(("fixed", k) for k in range(1, CEILING + 1)),
    ("batch", CEILING),
    ("request", CEILING),
)  # fmt: skip
QUICK_SEEDS, QUICK_SHARE = 1, 0.1


def measure(record: Record, worlds: Sequence[str], seeds: int, share: float, jobs: int) -> None:
    """Every mode in every world with every seed; runs that the record has already are left out."""
    tasks = [
        (world, policy, k, seed, share)
        for world in worlds
        for seed in range(seeds)
        for policy, k in MODES
        if not record.has(f"{world}/{policy} {k}/{seed}")
    ]
    # Spawned, not forked: numba's threads and matplotlib's state do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("simulating", total=len(tasks))
        for done in as_completed([pool.submit(run, *task) for task in tasks]):
            record.add(done.result())
            progress.update(bar, advance=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print the tables, and leave record, tables and picture behind."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS), metavar="WORLD")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.add_argument("--quick", action="store_true", help="a little of everything, into benchmarks/out")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of going on")
    parser.add_argument("--output", type=Path, help="the record (default: benchmarks/results/regret-MACHINE.json)")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    seeds, share = (QUICK_SEEDS, QUICK_SHARE) if options.quick else (options.seeds, 1.0)
    folder = ROOT / "benchmarks" / ("out" if options.quick else "results")
    path = options.output or folder / f"regret-{machine_slug()}.json"
    try:
        record = Record.open(
            path, "regret", {"seeds": seeds, "share": share}, versions_of(("smartspec", "numpy", "numba")),
            fresh=options.fresh or options.quick,
        )  # fmt: skip
    except RecordError as error:
        parser.error(str(error))
    measure(record, options.worlds, seeds, share, options.jobs)
    text = regret_report.markdown(record)
    path.with_suffix(".md").write_text(text)
    regret_report.draw(record)
    Console().print(text, markup=False)


if __name__ == "__main__":
    main()
