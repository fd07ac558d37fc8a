"""Section k0: what a draft that is loaded and never asked costs, against a server started without one."""

import cProfile
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from engine_bench.bench import Bench, Traffic, of_section, without_draft
from engine_bench.report import Check, Part, as_ratio, milliseconds, shown
from engine_bench.timing import median_ratio
from smartspec.policy.settings import PolicySettings

REQUESTS = (1, 16)
WITHOUT = "no draft"
HELD = {
    "off": PolicySettings(policy="off"),
    "request, at most 0": PolicySettings(policy="request", max_speculative_tokens=0),
}
WITHIN = 0.01
LEAST_PAIRS = 10


def measure(bench: Bench) -> None:
    """Three engines over one target step through the same requests, in turns.

    They even share the cache: the same requests, block ids and tokens write the same keys and values. So nothing but
    the engines differs, not even where in memory weights lie. Raises SystemExit if their texts do.
    """
    for num in REQUESTS:
        engines = {WITHOUT: bench.engine(PolicySettings(policy="off"), model=without_draft(bench.model))}
        engines |= {name: bench.engine(settings) for name, settings in HELD.items()}
        traffic = {name: Traffic(loaded) for name, loaded in engines.items()}
        pairs = 10 if bench.is_quick else 400
        for name, loaded in engines.items():
            traffic[name].top_up(num, max_tokens=pairs + 64)
            while not traffic[name].is_decoding():
                loaded.engine.step()
        times: dict[str, list[float]] = {name: [] for name in engines}
        order = list(engines)
        budget = bench.seconds(20.0 if num == 1 else 45.0)
        began = time.perf_counter()
        for turn in range(-4, pairs):
            if turn >= LEAST_PAIRS and turn % 2 == 0 and time.perf_counter() - began > budget:
                break
            for name in order if turn % 2 == 0 else reversed(order):
                started = time.perf_counter()
                engines[name].engine.step()
                took = time.perf_counter() - started
                if turn >= 0:
                    times[name].append(took)
        texts = [[r.output_token_ids for r in loaded.engine.scheduler.running] for loaded in engines.values()]
        if any(text != texts[0] for text in texts):
            raise SystemExit("engines with and without a draft gave different texts at k = 0")
        calls = {name: median([count_calls(loaded.engine.step) for _ in range(3)]) for name, loaded in engines.items()}
        for each in traffic.values():
            each.abort()
        for name in HELD:
            bench.add(
                "k0", f"{num} requests, {name}", requests=num, held=name, pairs=len(times[name]),
                seconds={WITHOUT: median(times[WITHOUT]), "held": median(times[name])},
                calls={WITHOUT: calls[WITHOUT], "held": calls[name]},
                ratio=vars(median_ratio(times[name], times[WITHOUT], paired=True)),
            )  # fmt: skip


def count_calls(function: Any) -> int:
    """Calls of functions, Python's and built-in ones, that *function* makes on this thread: a count of host work that
    no noise can touch, where a machine does not count instructions."""
    # In C: a profiler in Python would be taken by dynamo for something new to compile, in the middle of a step.
    profile = cProfile.Profile()
    profile.enable()
    try:
        function()
    finally:
        profile.disable()
    return sum(entry.callcount for entry in profile.getstats())


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """The table and the target."""
    rows, checks = [], []
    for run in of_section(runs, "k0"):
        ratio, seconds, calls = as_ratio(run["ratio"]), run["seconds"], run["calls"]
        rows.append(
            [
                f"{run['requests']}, {run['held']}",
                f"{run['pairs']}",
                milliseconds(seconds["held"]),
                milliseconds(seconds[WITHOUT]),
                shown(ratio),
                f"{calls['held']:.0f}",
                f"{calls[WITHOUT]:.0f}",
            ]
        )
        what = f"{run['requests']} requests, policy {run['held']}: ratio - 1"
        checks.append(Check(what, ratio.middle - 1, WITHIN, f"ratio {shown(ratio)}", nearness=True))
    return Part(
        "A draft that is not asked (k = 0)",
        (
            "Milliseconds (medians) of a step of an engine with a draft and prompt lookup held at k = 0, and of one "
            "without "
            "either, in turns over one target and cache; the ratio is the median over pairs. Calls: functions called "
            "in a "
            "step on the engine's thread, which no noise can touch."
        ),
        ("requests, policy", "pairs", "held", "without", "ratio", "calls, held", "calls, without"),
        rows,
        checks,
    )
