"""Section forward: a step of the paged model over the bare transformers forward of the same inputs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from engine_bench.bare import BareModel
from engine_bench.bench import Bench, of_section, segments
from engine_bench.report import Check, Part, as_ratio, milliseconds, shown
from engine_bench.timing import Contender, alternate, median_ratio
from smartspec.execution.paged_model import PagedModel

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (128, 512, 2048)
TARGET = 1.15
TARGET_BATCHES = (1, 32)
COMPILE_SECONDS = 30.0
AGREEMENT = 0.05
"""Relative difference of logits that rounding to 16 bits may make between two orders of the same sums."""


class Shape(NamedTuple):
    """*batch* requests of *context* tokens, the last *rows* of each computed in this step."""

    batch: int
    rows: int
    context: int
    compiles: bool = False

    def __str__(self) -> str:
        return f"{self.batch}x{self.rows} rows, context {self.context}"


def shapes(*, quick: bool) -> Iterator[Shape]:
    """What is measured: decoding steps over batch and context, then steps that verify four tokens."""
    if quick:
        yield from (Shape(1, 1, 128, True), Shape(8, 1, 128), Shape(8, 1, 512), Shape(1, 5, 128))
        return
    for batch in BATCHES:
        yield Shape(batch, 1, 128, batch in TARGET_BATCHES)
    for context in CONTEXTS[1:]:
        yield from (Shape(batch, 1, context) for batch in (1, 8, 32))
    yield from (Shape(1, 5, 128, True), Shape(32, 5, 128))


def measure(bench: Bench) -> None:
    """Ours compiled and eager, and theirs eager and, for a few shapes, compiled, in turns."""
    target = bench.filled
    # The same weights and cache without the compiled forward.
    eager = PagedModel(
        target.model, num_blocks=1, block_size=target.block_size, layers=target.layers, products=target.products,
        row_multiple=target.row_multiple,
    )  # fmt: skip
    eager.attention = target.attention
    bare = BareModel(bench.options.target)
    _agree(target, bare)
    for shape in shapes(quick=bench.is_quick):
        if (short := _missing_bytes(bare, shape)) > 0:
            bench.say(f"{shape}: left out, {short / 2**30:.1f} GiB of memory are missing")
            continue
        ours = segments([shape.context] * shape.batch, shape.rows, target.block_size, target.vocab_size)
        step = bare.step(shape.batch, shape.rows, shape.context)
        ids = torch.tensor([segment.token_ids for segment in ours])
        contenders = {
            "compiled": Contender(lambda ours=ours: target.forward(ours)),  # type: ignore[misc]
            "bare eager": step.contender(ids),
            "eager": Contender(lambda ours=ours: eager.forward(ours)),  # type: ignore[misc]
        }
        if shape.compiles and bench.budget.allows("compile", COMPILE_SECONDS):
            began = bench.budget.elapsed
            contenders["bare compiled"] = step.compiled(ids)
            bench.budget.took("compile", bench.budget.elapsed - began)
        times = alternate(contenders, seconds=bench.seconds(5.0))
        medians = {name: median(values) for name, values in times.items()}
        reference = min((name for name in times if name.startswith("bare")), key=medians.__getitem__)
        ratios = {name: median_ratio(times[name], times[reference]) for name in ("compiled", "eager")}
        bench.add(
            "forward", str(shape), **shape._asdict(), turns=len(times["compiled"]), reference=reference,
            milliseconds={name: [round(1e3 * t, 3) for t in values] for name, values in times.items()},
            medians=medians, ratios={name: vars(ratio) for name, ratio in ratios.items()},
        )  # fmt: skip
        bench.say(f"{shape}: {shown(ratios['compiled'])} of {reference}")


def _agree(target: PagedModel, bare: BareModel) -> None:
    """Both compute the same, or their times mean nothing; a whole context, so that nothing comes from the caches."""
    (ours,) = segments([32], 32, target.block_size, target.vocab_size)
    expected = bare.step(1, 32, 32).logits(torch.tensor([ours.token_ids]))[0].float()
    difference = float((target.forward([ours]) - expected).norm() / expected.norm())
    if not difference <= AGREEMENT:
        raise SystemExit(f"ours and the bare forward differ by {difference:.2g}: there is nothing to compare")


def _missing_bytes(bare: BareModel, shape: Shape) -> float:
    """How much more memory the bare step needs than there is: its cache, and one layer's keys and values repeated for
    each query head."""
    config = bare.config
    layer = 4 * shape.batch * shape.context * config.head_dim * config.num_key_value_heads
    needed: float = (
        layer * config.num_hidden_layers + 2 * layer * config.num_attention_heads / config.num_key_value_heads
    )
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return needed + 2**30 - available


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """The table, and the target at batch 1 and 32."""
    found = of_section(runs, "forward")
    rows, checks = [], []
    for run in found:
        medians, ratio = run["medians"], as_ratio(run["ratios"]["compiled"])
        names = ("compiled", "eager", "bare eager", "bare compiled")
        rows.append(
            [
                f"{run['batch']} x {run['rows']}",
                f"{run['context']}",
                *(milliseconds(medians.get(name)) for name in names),
                shown(ratio),
                shown(as_ratio(run["ratios"]["eager"])),
            ]
        )
        if run["batch"] in TARGET_BATCHES:
            what = f"step of {Shape(run['batch'], run['rows'], run['context'])} over {run['reference']}"
            checks.append(Check.of_ratio(what, ratio, TARGET))
    return Part(
        "Step over the bare forward",
        (
            "Milliseconds (medians) of a step of so many requests with so many rows each: `PagedModel.forward` "
            "compiled "
            "and eager (both on packed weights), and the plain transformers forward over a preallocated cache of "
            "exactly "
            "that length, eager and compiled by inductor for that one shape with frozen weights (only where a time "
            "stands: some 20 s a shape). The ratios are over the faster of the two that were measured."
        ),
        ("requests", "context", "ours", "ours, eager", "bare, eager", "bare, compiled", "ratio", "ratio, eager"),
        rows,
        checks,
    )
