"""Where the time of `paper`'s runs went, by what the servers counted: the profile behind its ratios."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]
STEPS = "smartspec_steps_total"
SECONDS = "smartspec_step_seconds_total"
PARTS = ("host", "draft", "target")
HEAD = "| workload | load | mode | tokens a step | host | draft | target | no step | in all | not kept | probes |"
NOTE = (
    "Milliseconds per token kept: in the engine's steps by part (`host` is planning, choosing, committing, learning), "
    "and while none ran, which in an open loop is mostly waiting for requests. `not kept` is the share of proposed "
    "tokens that was not kept, `probes` the share of steps that were probes. Of the fixed lengths the one with the "
    "lowest mean latency over all rounds is shown."
)


def counted(counters: Mapping[str, float], name: str) -> float:
    """The counter *name*, over all its labels."""
    return sum(value for key, value in counters.items() if key.partition("{")[0] == name)


def table(cells: Sequence[tuple[str, str]], runs: Sequence[Run], fixed: Sequence[str]) -> list[str]:
    """Rows for `off`, the best of *fixed* and `request` in each of *cells* (workload and load), with their head;
    nothing where the servers counted no steps."""
    rows = []
    for workload, load in cells:
        here = [run for run in runs if (run["workload"], run["load"]) == (workload, load)]
        by_mode = {mode: [run for run in here if run["mode"] == mode] for mode in ("off", *fixed, "request")}
        measured = [mode for mode in fixed if by_mode[mode]]
        best = min(measured, key=lambda mode: _mean_latency(by_mode[mode]), default="off")
        for mode in dict.fromkeys(("off", best, "request")):
            cells_of = _row(by_mode[mode])
            if cells_of:
                rows.append(f"| {workload} | {load} | {mode} | " + " | ".join(cells_of) + " |")
    return [HEAD, "|" + "---|" * (HEAD.count("|") - 1), *rows] if rows else []


def _row(runs: Sequence[Run]) -> list[str]:
    total: dict[str, float] = {}
    for run in runs:
        for name, value in run["counters"].items():
            total[name] = total.get(name, 0.0) + value
    steps, tokens = counted(total, STEPS), counted(total, "smartspec_tokens_kept_total")
    if not steps or not tokens:
        return []
    seconds = [total.get(f"{SECONDS}{{part={part}}}", 0.0) for part in PARTS]
    whole = sum(run["seconds"] for run in runs)
    drafted = counted(total, "smartspec_draft_tokens_total")
    wasted = counted(total, "smartspec_wasted_draft_tokens_total")
    return [
        f"{tokens / steps:.1f}",
        *(f"{1000 * part / tokens:.3f}" for part in (*seconds, whole - sum(seconds), whole)),
        f"{wasted / drafted:.0%}" if drafted else "-",
        f"{counted(total, 'smartspec_probes_total') / steps:.0%}",
    ]


def _mean_latency(runs: Iterable[Run]) -> float:
    latencies = [latency for run in runs for latency in run["latencies"]]
    return float(sum(latencies) / len(latencies))
