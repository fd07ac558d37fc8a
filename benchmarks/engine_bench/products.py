"""Section products: the matrix products of the target's linear layers, by our kernel and by oneDNN."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from engine_bench.bench import Bench, of_section
from engine_bench.report import Check, Part, as_ratio, milliseconds, shown
from engine_bench.timing import Contender, alternate, median_ratio
from smartspec.execution.packed_linear import BlockedWeight, PaneledWeight, Weight

ROWS = (1, 4, 8, 16, 32, 64, 128, 256)
NEVER_ABOVE = 1.02
"""Of ours over oneDNN's: where it suits, it must be worth having at every number of rows."""


@torch.inference_mode()
def measure(bench: Bench) -> None:
    """Each product once, in the order of a forward: so all weights come from memory, as in a step."""
    products = bench.target.products
    if not products or not all(isinstance(product.weight, PaneledWeight) for product in products):
        bench.say("products: not all are by our kernel on this machine, nothing to compare")
        return
    ours = [product.weight for product in products]
    blocked = [BlockedWeight(product.weight.dense(), product.bias) for product in products]
    widths = [product.in_features for product in products]
    moved = 2 * sum(product.in_features * product.out_features for product in products)
    for count in ROWS[::3] if bench.is_quick else ROWS:
        rows = {width: torch.randn(1, count, width).bfloat16() for width in set(widths)}
        ways = {
            name: Contender(_through(weights, [rows[width] for width in widths]))
            for name, weights in (("ours", ours), ("oneDNN", blocked))
        }
        times = alternate(ways, seconds=bench.seconds(2.5))
        bench.add(
            "products", f"{count} rows", rows=count, bytes=moved, flops=moved * count,
            seconds={name: median(values) for name, values in times.items()},
            ratio=vars(median_ratio(times["ours"], times["oneDNN"])),
        )  # fmt: skip


def _through(weights: Sequence[Weight], rows: Sequence[torch.Tensor]) -> Callable[[], object]:
    def run() -> None:
        for weight, each in zip(weights, rows, strict=True):
            weight.multiply(each)

    return run


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """The table, with what each number of rows reaches of memory and of arithmetic."""
    rows, checks = [], []
    for run in of_section(runs, "products"):
        ours, ratio = run["seconds"]["ours"], as_ratio(run["ratio"])
        rows.append(
            [
                f"{run['rows']}",
                milliseconds(ours),
                milliseconds(run["seconds"]["oneDNN"]),
                shown(ratio),
                f"{run['bytes'] / ours / 1e9:.1f}",
                f"{run['flops'] / ours / 1e9:.0f}",
            ]
        )
        checks.append(Check.of_ratio(f"products of {run['rows']} rows over oneDNN's", ratio, NEVER_ABOVE))
    return Part(
        "The matrix products",
        (
            "Milliseconds (medians) of all linear layers' products, each once: by our kernel, and by oneDNN on weights "
            "packed for it; and what ours read of weights and computed in that time: the next table has the limits."
        ),
        ("rows", "ours", "oneDNN", "ratio", "GB/s", "GFLOP/s"),
        rows,
        checks,
    )
