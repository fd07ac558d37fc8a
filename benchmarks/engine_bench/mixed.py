"""Section mixed: what one long context among short ones costs, against the same number of tokens spread evenly."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from engine_bench.bench import Bench, of_section, segments
from engine_bench.report import Check, Part, as_ratio, milliseconds, shown
from engine_bench.timing import Contender, alternate, median_ratio

BATCH, LONG, SHORT = 32, 2048, 128
TARGET = 1.2
ROWS = (1, 5)


def contexts() -> tuple[list[int], list[int]]:
    """One long among short ones, and as many of their mean length."""
    mixed = [LONG] + [SHORT] * (BATCH - 1)
    return mixed, [round(sum(mixed) / BATCH)] * BATCH


def measure(bench: Bench) -> None:
    """Both batches in turns, decoding and verifying."""
    target = bench.filled
    for rows in ROWS:
        one, two = (segments(lengths, rows, target.block_size, target.vocab_size) for lengths in contexts())
        times = alternate(
            {
                "mixed": Contender(lambda one=one: target.forward(one)),  # type: ignore[misc]
                "even": Contender(lambda two=two: target.forward(two)),  # type: ignore[misc]
            },
            seconds=bench.seconds(10.0),
            least=10,
        )
        bench.add(
            "mixed", f"{rows} rows", rows=rows, turns=len(times["mixed"]),
            seconds={name: median(values) for name, values in times.items()},
            ratio=vars(median_ratio(times["mixed"], times["even"])),
        )  # fmt: skip


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """The table and the target."""
    rows, checks = [], []
    for run in of_section(runs, "mixed"):
        ratio, seconds = as_ratio(run["ratio"]), run["seconds"]
        rows.append(
            [f"{run['rows']}", milliseconds(seconds["mixed"]), milliseconds(seconds["even"]), shown(ratio)],
        )
        checks.append(Check.of_ratio(f"one long context, {run['rows']} rows a request", ratio, TARGET))
    mixed, even = contexts()
    return Part(
        "One long context in a batch",
        f"Milliseconds of a step of {len(mixed)} requests, one with a context of {LONG} tokens and the others with "
        f"{SHORT}, against all with {even[0]}.",
        ("rows a request", "one long", "all alike", "ratio"),
        rows,
        checks,
    )
