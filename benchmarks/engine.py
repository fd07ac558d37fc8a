"""The engine's step: against the bare forward, the machine's limits, its own host time, and what the policy predicts.

Everything runs in this process, on the bundled pair. Sections can be run one by one; those not run keep what is
recorded. Each prints its table with its targets, reached or not, as soon as it has them.

    make bench-engine                                        # all sections, some 8 minutes on four cores
    python benchmarks/engine.py --sections forward k0        # two of them
    python benchmarks/engine.py --quick                      # a little of everything, to see that it works
    taskset -c 0,1 python benchmarks/engine.py --threads 2   # on two cores
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from engine_bench import (
    controller,
    controller_parts,
    forward,
    host,
    idle_draft,
    limit,
    mixed,
    products,
    step_parts,
    time_model,
)
from engine_bench.bench import USUAL_MINUTES, Bench, of_section
from engine_bench.neighbours import NOTABLE, Neighbours
from engine_bench.picture import draw
from engine_bench.report import Part, markdown
from smartspec.config import ConfigError
from smartspec.execution.threads import available_cpus
from smartspec_bench.prompts import ROOT
from smartspec_bench.record import Record, RecordError, machine_slug, versions_of
from smartspec_bench.session import Budget, output_path

SEED = 20240614


@dataclass(frozen=True)
class Section:
    """How to measure it into the record, how to report it, and the share of the time it is likely to take."""

    measure: Callable[[Bench], None]
    part: Callable[[Sequence[Mapping[str, Any]]], Part]
    seconds: float


SECTIONS = {
    "forward": Section(forward.measure, forward.part, 190),
    "products": Section(products.measure, products.part, 25),
    "limit": Section(limit.measure, limit.part, 35),
    "step-parts": Section(step_parts.measure, step_parts.part, 30),
    "mixed": Section(mixed.measure, mixed.part, 25),
    "host": Section(host.measure, host.part, 50),
    "controller": Section(controller.measure, controller.part, 15),
    "controller-parts": Section(controller_parts.measure, controller_parts.part, 5),
    "k0": Section(idle_draft.measure, idle_draft.part, 70),
    "time-model": Section(time_model.measure, time_model.part, 60),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
                       help=f"of {' '.join(SECTIONS)} (all)")  # fmt: skip
    found.add_argument("--target", type=Path, default=ROOT / ".cache/models/stdlib-target-190m")
    found.add_argument("--draft", type=Path, default=ROOT / "examples/models/stdlib-draft")
    found.add_argument("--threads", type=int, help="threads to compute with (as many as there are cores for us)")
    found.add_argument("--minutes", type=float, default=USUAL_MINUTES,
                       help=f"time to keep to; some sections take their share of it ({USUAL_MINUTES:g})")  # fmt: skip
    found.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="as of `smartspec serve` (auto)"
    )
    found.add_argument("--quick", action="store_true", help="a little of everything, to see that it works")
    found.add_argument("--fresh", action="store_true", help="forget what is recorded of other sections")
    found.add_argument(
        "--report", action="store_true", help="measure nothing, write table and picture of what there is"
    )
    found.add_argument(
        "--machine", default=machine_slug(), help=f"name of this machine in the files ({machine_slug()})"
    )
    found.add_argument("--output", type=Path, help="folder for results (benchmarks/results; --quick: benchmarks/out)")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and report."""
    options = parser().parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        raise SystemExit(f"--threads must be at least 1, got {options.threads}")
    if not options.minutes > 0:
        raise SystemExit(f"--minutes must be more than 0, got {options.minutes:g}")
    options.threads = options.threads or available_cpus()
    for name in ("target", "draft"):
        if not (folder := getattr(options, name)).joinpath("config.json").exists():
            raise SystemExit(f"--{name}: there is no model in {folder}; `make bench-engine` makes the bundled ones")
    try:
        record = open_record(options)
        if not options.report:
            measure(options, record)
    except (RecordError, ConfigError) as error:
        raise SystemExit(str(error)) from None
    write(record)


def open_record(options: argparse.Namespace) -> Record:
    """The record with these options, with what other sections left in it."""
    versions = versions_of(("smartspec", "torch", "transformers", "numba", "numpy"))
    kept = {
        "target": options.target.name,
        "draft": options.draft.name,
        "threads": options.threads,
        "compile": options.compile,
        "quick": options.quick,
    }
    path = output_path(options, "engine")
    if options.report and not path.exists():
        raise RecordError(f"there is nothing to report: {path} does not exist")
    return Record.open(path, "engine", kept, versions, fresh=options.fresh)


def measure(options: argparse.Namespace, record: Record) -> None:
    """The sections asked for, in the order of `SECTIONS`, as far as time goes."""
    console = Console(stderr=True, highlight=False)
    budget = Budget(options.minutes)

    def say(text: str) -> None:
        minutes, seconds = divmod(int(budget.elapsed), 60)
        console.print(f"[dim]{minutes:3d}:{seconds:02d}[/]  {text}")

    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    bench = Bench(options, record, budget, say)
    commit = Record.open(record.path, "engine", {}, {}, fresh=True).header["commit"]
    sections = dict(record.header.get("sections", {}))
    for name, section in SECTIONS.items():
        if name not in options.sections:
            continue
        if not options.quick and not budget.allows(name, bench.seconds(section.seconds)):
            say(f"no time left for {name}: it keeps what was recorded before, if anything")
            continue
        say(f"[bold]{name}[/]")
        began, neighbours = budget.elapsed, Neighbours()
        record.runs = [run for run in record.runs if run["section"] != name]
        section.measure(bench)
        sections[name] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit,
            "seconds": round(budget.elapsed - began, 1),
            "cores_taken_by_others": round(neighbours.cores(), 2),
        }
        record.note("sections", sections)
        print(section.part(record.runs), flush=True)
        if (taken := sections[name]["cores_taken_by_others"]) > NOTABLE:
            say(
                f"[bold]other processes took {taken:.2f} of our cores[/] during {name}: its times are not to be trusted"
            )


def parts(record: Record) -> list[Part]:
    """The report of all sections that are recorded, in order."""
    return [section.part(record.runs) for name, section in SECTIONS.items() if of_section(record.runs, name)]


def write(record: Record) -> None:
    """The tables and the picture beside the record, and on the screen what was reached and what was not."""
    found = parts(record)
    if not found:
        raise SystemExit("nothing was measured: the time was too short for a section")
    record.path.with_suffix(".md").write_text(markdown(record.header, found))
    draw(record.path.with_suffix(".png"), record.header, record.runs)
    checks = [check for part in found for check in part.checks]
    print("\n".join(map(str, checks)))
    missed = int(np.sum([not check.is_met for check in checks]))
    print(
        f"\n{len(checks) - missed} of {len(checks)} targets reached. {record.path.with_suffix('.md')}", file=sys.stderr
    )


if __name__ == "__main__":
    main()
