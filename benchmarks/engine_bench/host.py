"""Section host: what a step of the engine takes besides its forwards, by part."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from engine_bench.bench import Bench, Traffic, of_section
from engine_bench.report import Part
from engine_bench.timing import Stopwatch
from smartspec.async_engine.thread import LoadedEngine
from smartspec.execution import model_runner, paged_model
from smartspec.execution.loader import LoadedModel
from smartspec.execution.proposers import Drafts
from smartspec.policy.settings import PolicySettings

REQUESTS = (1, 16, 64)
PARTS = {
    "schedule": "schedule",
    "decide": "the policy's limits and choice",
    "propose": "drafting besides its forwards",
    "draft pack": "packing for the draft",
    "segments": "rows for the target, features",
    "pack": "packing for the target",
    "verify": "verify and sample",
    "commit": "commit",
    "observe": "the policy's learning",
    "rest": "the rest of the step",
}
FORWARDS = ("draft forward", "target forward")
SETTLING = 8


def measure(bench: Bench) -> None:
    """Some steps of each batch under policy `request`, with timers around the engine's parts."""
    for num in REQUESTS:
        loaded = bench.engine(PolicySettings(policy="request"), warm=True)
        traffic = Traffic(loaded)
        steps, longest = (10, 2.0) if bench.is_quick else (60, 12.0)
        # Nobody ends meanwhile: each step commits at most one token more than it may speculate.
        traffic.top_up(num, max_tokens=9 * (steps + SETTLING))
        while not traffic.is_decoding():
            loaded.engine.step()
        for _ in range(SETTLING):
            loaded.engine.step()
        taken, rows = _steps(bench.model, loaded, steps, bench.seconds(longest))
        traffic.abort()
        parts = {name: median([times.get(name, 0.0) for times in taken]) for name in (*PARTS, *FORWARDS)}
        host = median([sum(times.get(name, 0.0) for name in PARTS) for times in taken])
        whole = median([sum(times.values()) for times in taken])
        bench.add(
            "host", f"{num} requests", requests=num, steps=len(taken), rows=median(rows), parts=parts, host=host,
            step=whole,
        )  # fmt: skip


def _steps(
    model: LoadedModel, loaded: LoadedEngine[Drafts], steps: int, seconds: float
) -> tuple[list[dict[str, float]], list[int]]:
    """Seconds by part, and rows of the target, of at most so many steps."""
    engine, policy = loaded.engine, loaded.policy
    watch = Stopwatch()
    wrapped: list[Any] = [
        (engine, "step", "rest"),
        (engine.scheduler, "schedule", "schedule"),
        (engine.scheduler, "update", "commit"),
        (policy, "limits", "decide"),
        (policy, "decide", "decide"),
        (policy, "observe", "observe"),
        (engine.proposer, "propose", "propose"),
        (engine.runner, "execute", "segments"),
        (model.target, "forward", "target forward"),
        (paged_model, "pack", "pack", {"draft forward": "draft pack"}),
        (model_runner, "verify", "verify"),
    ]
    if model.draft is not None:
        wrapped.append((model.draft, "forward", "draft forward"))
    taken: list[dict[str, float]] = []
    rows: list[int] = []
    with watch.on(*wrapped):
        while len(taken) < steps and (len(taken) < 5 or sum(sum(times.values()) for times in taken) < seconds):
            stats = engine.step().stats
            assert stats is not None
            taken.append(watch.take())
            rows.append(stats.features.target_tokens)
    return taken, rows


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """Microseconds by part, one column for each number of requests."""
    found = of_section(runs, "host")
    rows = [[label, *(f"{1e6 * run['parts'][name]:.0f}" for run in found)] for name, label in PARTS.items()]
    rows.append(["**host in all**", *(f"{1e6 * run['host']:.0f}" for run in found)])
    rows += [[name, *(f"{1e6 * run['parts'][name]:.0f}" for run in found)] for name in FORWARDS]
    rows.append(["**step**", *(f"{1e6 * run['step']:.0f}" for run in found)])
    rows.append(["host's share", *(f"{run['host'] / run['step']:.1%}" for run in found)])
    rows.append(["rows of the target", *(f"{run['rows']:.0f}" for run in found)])
    return Part(
        "Host time by part",
        (
            "Microseconds (medians) of a step of the engine, policy `request`, all requests decoding. A part's time "
            "is its "
            "own, without the parts it calls. Drafting besides its forwards includes choosing the draft's tokens; "
            "verifying "
            "includes the comparison of logits, which is arithmetic over rows times vocabulary. Forwards include "
            "handing "
            "the packed rows to torch."
        ),
        ("", *(f"{run['requests']} requests" for run in found)),
        rows,
    )
