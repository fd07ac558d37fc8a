"""Section controller-parts: where the policy's microseconds go."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine_bench.bench import Bench, of_section
from engine_bench.controller import CEILING, REQUESTS, rounds
from engine_bench.report import Part
from engine_bench.timing import Stopwatch
from smartspec.policy import controller
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import PolicySettings

PARTS = {
    "columns": "decide: requests as columns",
    "costs": "decide: what nodes cost",
    "problem": "decide: chances and worth",
    "search": "decide: the search",
    "probe": "decide: looking for a probe",
    "choices": "decide: the plan by request",
    "decide": "decide: the rest",
    "acceptance": "observe: acceptance",
    "time": "observe: the time model",
    "observe": "observe: the rest",
}


def measure(bench: Bench) -> None:
    """The rounds of section controller again, with timers around the policy's parts."""
    known = bench.engine(PolicySettings(policy="request", max_speculative_tokens=CEILING), warm=True).policy.priors()
    for num in REQUESTS:
        settings = PolicySettings(policy="request", max_speculative_tokens=CEILING, priors=known)
        policy, watch, count = SpeculationPolicy(settings, key=known.key), Stopwatch(), 60 if bench.is_quick else 300
        wrapped: list[Any] = [
            (controller, "batch_columns", "columns"),
            (controller, "costs_of", "costs"),
            (controller, "problem_of", "problem"),
            (controller, "optimise", "search"),
            (controller, "choices_of", "choices"),
            (policy._prober, "probe", "probe"),
            (policy._acceptance, "observe", "acceptance"),
            (policy._latency, "observe", "time"),
            (policy, "decide", "decide"),
            (policy, "observe", "observe"),
        ]
        rounds(policy, num, 20, seed=1)
        with watch.on(*wrapped):
            rounds(policy, num, count)
        taken = watch.take()
        steps = count + 5  # those that settle it, too
        parts = {name: taken.get(name, 0.0) / steps for name in PARTS}
        bench.add("controller-parts", f"{num} requests", requests=num, parts=parts)


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """Microseconds by part, one column for each number of requests."""
    found = of_section(runs, "controller-parts")
    rows = [[label, *(f"{1e6 * run['parts'][name]:.0f}" for run in found)] for name, label in PARTS.items()]
    rows.append(["**both**", *(f"{1e6 * sum(run['parts'].values()):.0f}" for run in found)])
    return Part(
        "The controller, part by part",
        "Microseconds (means, timers included) of the same rounds; a part's time is its own, without the parts in it.",
        ("", *(f"{run['requests']} requests" for run in found)),
        rows,
    )
