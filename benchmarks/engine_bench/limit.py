"""Section limit: how many times longer a step takes than memory and arithmetic of this machine would let it."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from engine_bench.bench import Bench, of_section, segments
from engine_bench.forward import BATCHES
from engine_bench.report import Part, milliseconds
from engine_bench.timing import Contender, alternate
from smartspec.execution.paged_model import PagedModel

READ_BYTES = 1 << 30
SQUARES = (1024, 2048, 4096)
SHAPES = (*((batch, 1, 128) for batch in BATCHES), (32, 1, 512), (32, 1, 2048), (1, 5, 128), (32, 5, 128))


def measure(bench: Bench) -> None:
    """The machine before and after our steps, of which the better counts: others may be busy at times."""
    target = bench.filled
    chosen = SHAPES[::4] if bench.is_quick else SHAPES
    bandwidth, rate = _bandwidth(bench), _rate(bench)
    steps: list[tuple[tuple[int, int, int], float]] = []
    for batch, rows, context in chosen:
        ours = segments([context] * batch, rows, target.block_size, target.vocab_size)
        run: Callable[[], object] = lambda ours=ours: target.forward(ours)  # type: ignore[misc]  # noqa: E731
        times = alternate({"step": Contender(run)}, seconds=bench.seconds(1.5))
        steps.append(((batch, rows, context), median(times["step"])))
    bandwidth, rate = max(bandwidth, _bandwidth(bench)), max(rate, _rate(bench))
    bench.add("limit", "machine", bytes_per_second=bandwidth, flops_per_second=rate)
    for (batch, rows, context), seconds in steps:
        moved, computed = work(target, batch, rows, context)
        bench.add(
            "limit", f"{batch}x{rows} rows, context {context}", batch=batch, rows=rows, context=context,
            seconds=seconds, bytes=moved, flops=computed,
            memory_seconds=moved / bandwidth, compute_seconds=computed / rate,
        )  # fmt: skip


def work(target: PagedModel, batch: int, rows: int, context: int) -> tuple[int, int]:
    """Bytes that a step must read (all weights of matrix products once, each request's keys and values once) and
    floating-point operations it must do (two for each multiplication)."""
    if target.products:
        weights = sum(product.in_features * product.out_features for product in target.products)
    else:
        weights = sum(m.weight.numel() for m in target.model.modules() if isinstance(m, torch.nn.Linear))
    cache = sum(layer.bytes_per_token for layer in target.layers)
    attention = sum(layer.num_heads * (layer.key_dim + layer.value_dim) for layer in target.layers)
    moved = weights * target.layers[0].dtype.itemsize + batch * context * cache
    return moved, 2 * batch * rows * (weights + context * attention)


def _bandwidth(bench: Bench) -> float:
    """Bytes per second of reading memory, by the faster of two ways."""
    words = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    halves, vector = words.view(torch.bfloat16).view(-1, 4096), torch.ones(4096, dtype=torch.bfloat16)
    ways = {"sum": Contender(words.sum), "product": Contender(lambda: torch.mv(halves, vector))}
    times = alternate(ways, seconds=bench.seconds(1.5), least=4)
    return READ_BYTES / min(median(values) for values in times.values())


def _rate(bench: Bench) -> float:
    """Floating-point operations per second of bfloat16 matrix products, at the best of a few sizes."""
    best = 0.0
    for size in SQUARES[:1] if bench.is_quick else SQUARES:
        one = torch.randn(size, size, dtype=torch.bfloat16)
        run: Callable[[], object] = lambda one=one: one @ one.T  # type: ignore[misc]  # noqa: E731
        times = alternate({"product": Contender(run)}, seconds=bench.seconds(0.5), least=2)
        best = max(best, 2 * size**3 / median(times["product"]))
    return best


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """The table; there is no target but to see what is left."""
    found = of_section(runs, "limit")
    machine = next(run for run in found if run["key"] == "limit machine")
    rows = []
    for run in found:
        if run is not machine:
            bound = max(run["memory_seconds"], run["compute_seconds"])
            rows.append(
                [
                    f"{run['batch']} x {run['rows']}",
                    f"{run['context']}",
                    milliseconds(run["seconds"]),
                    milliseconds(run["memory_seconds"]),
                    milliseconds(run["compute_seconds"]),
                    f"{run['seconds'] / bound:.2f}",
                ]
            )
    return Part(
        "Step over what the machine allows",
        (
            f"Measured here: memory is read at {machine['bytes_per_second'] / 1e9:.1f} GB/s, bfloat16 matrices are "
            f"multiplied at {machine['flops_per_second'] / 1e9:.0f} GFLOP/s. Milliseconds of our step, of reading its "
            "weights and its contexts' keys and values once, of doing its arithmetic at that rate, and how many times "
            "the "
            "larger of these two the step takes."
        ),
        ("requests", "context", "step", "memory", "arithmetic", "times"),
        rows,
    )
