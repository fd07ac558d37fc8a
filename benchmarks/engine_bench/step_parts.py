"""Section step-parts: where a step's time goes: products, attention, and all that is between them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from engine_bench.bench import Bench, of_section, segments
from engine_bench.report import Part, milliseconds
from engine_bench.timing import Contender, alternate
from smartspec.execution import product_kernel
from smartspec.execution.batch import Segment
from smartspec.execution.compiled_attention import CompiledAttention
from smartspec.execution.packed_linear import PaneledWeight
from smartspec.execution.paged_model import PagedModel
from smartspec.execution.ragged import pack

STEPS = {"decoding": (64, 1, 130), "few decoding": (4, 1, 200), "prompts": (8, 64, 64)}
"""Requests, rows of each, and context: as 64 requests at once have them, 2 a second, and the start of the former."""


@torch.inference_mode()
def measure(bench: Bench) -> None:
    """The step, then its products alone in its order and number of rows, and its attention alone, in turns."""
    target = bench.filled
    weights = [product.weight for product in target.products]
    paneled = [weight for weight in weights if isinstance(weight, PaneledWeight)]
    if not paneled or len(paneled) < len(weights) or not isinstance(target.attention, CompiledAttention):
        bench.say("step-parts: products or attention are not our kernels' on this machine, nothing to take apart")
        return
    for name, (batch, rows, context) in STEPS.items():
        step = [
            Segment(segment.token_ids, segment.start, segment.block_table, num_logits=1)
            for segment in segments([context] * batch, rows, target.block_size, target.vocab_size)
        ]
        target.forward(step)
        ways = {
            "step": Contender(lambda step=step: target.forward(step)),  # type: ignore[misc]
            "products": Contender(_products(paneled)),
            "attention": Contender(_attention(target, target.attention, step)),
        }
        times = alternate(ways, seconds=bench.seconds(6.0))
        kept = sum(layer.bytes_per_token for layer in target.layers)
        bench.add(
            "step-parts", name, batch=batch, rows=rows, context=context,
            seconds={way: median(values) for way, values in times.items()},
            flops=sum(_flops(weight) for weight in paneled), cache_bytes=batch * context * kept,
        )  # fmt: skip


def _products(weights: Sequence[PaneledWeight]) -> Callable[[], object]:
    """What was multiplied last, once more: as many rows by each weight, and gated where that was."""
    last = [(int(p[product_kernel.ROWS]), int(p[product_kernel.GATE])) for p in (w.parameters for w in weights)]
    width = [2 * int(weight.parameters[product_kernel.PAIRS]) for weight in weights]
    given = {(n, size): torch.randn(n, size).bfloat16() for (n, _), size in zip(last, width, strict=True)}

    def run() -> None:
        for weight, (count, gate), size in zip(weights, last, width, strict=True):
            weight.multiply(given[count, size], gate)

    return run


def _flops(weight: PaneledWeight) -> int:
    p = weight.parameters
    return 4 * int(p[product_kernel.ROWS] * p[product_kernel.PAIRS] * p[product_kernel.COLUMNS_OF_W])


def _attention(target: PagedModel, attention: CompiledAttention, step: Sequence[Segment]) -> Callable[[], object]:
    batch = pack(step, target.block_size)
    rows = len(batch.input_ids)
    given = [
        [
            torch.randn(1, rows, heads, width).to(layer.dtype).transpose(1, 2)
            for heads, width in (
                (layer.num_heads, layer.key_dim),
                (layer.num_kv_heads, layer.key_dim),
                (layer.num_kv_heads, layer.value_dim),
            )
        ]
        for layer in target.layers
    ]

    def run() -> None:
        attention.begin(batch)
        for number, tensors in enumerate(given):
            attention.attend(number, *tensors)

    return run


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """The table, beside what the machine's rates of section limit allow."""
    machine = next((run for run in runs if run["key"] == "limit machine"), None)
    rows = []
    for run in of_section(runs, "step-parts"):
        seconds = run["seconds"]
        least = (
            (None, None)
            if machine is None
            else (run["flops"] / machine["flops_per_second"], run["cache_bytes"] / machine["bytes_per_second"])
        )
        rows.append(
            [
                f"{run['batch']} x {run['rows']}",
                f"{run['context']}",
                milliseconds(seconds["step"]),
                milliseconds(seconds["products"]),
                milliseconds(least[0]),
                milliseconds(seconds["attention"]),
                milliseconds(least[1]),
                milliseconds(seconds["step"] - seconds["products"] - seconds["attention"]),
            ]
        )
    return Part(
        "Where a step's time goes",
        (
            "Milliseconds (medians) of a step whose requests each want one row's logits; of its products alone, in the "
            "same order and of as many rows, and their arithmetic at the rate of section limit; of writing and reading "
            "its keys and values alone, and reading them at memory's rate; and what is left: the compiler's loops, "
            "threads that wait for the last, packing. Alone, weights leave the keys and values in the caches, and "
            "otherwise: the rest includes what they cost each other."
        ),
        ("requests", "context", "step", "products", "arithmetic", "attention", "memory", "rest"),
        rows,
    )
