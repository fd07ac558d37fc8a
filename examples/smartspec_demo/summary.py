"""What the demo found, as numbers and as verdicts. Pure: from samples, snapshots and the course to a summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, median, stdev
from typing import Any

from smartspec_demo.load import FIXED_TOKENS, Mode, Sample
from smartspec_demo.monitor import Snapshot
from smartspec_demo.scenario import Course

MIN_IDLE_K = 2.0
MAX_IDLE_LATENCY_RATIO = 0.65
MIN_FLOOD_SPEED_RATIO = 0.95
FLOODS = ("flood", "compare")


@dataclass(frozen=True)
class Claim:
    """One thing the demo promises, whether it held, and the measured values that say so."""

    text: str
    held: bool
    measured: str


def summarize(
    samples: Sequence[Sample], snapshots: Sequence[Snapshot], course: Course, hardware: dict[str, Any]
) -> dict[str, Any]:
    """The content of `summary.json`; a value is None where nothing was measured.

    Of a mode's slices the median counts: one that the machine disturbed says nothing about the mode.
    """
    latencies = {
        mode: _mean([s.latency for s in samples if s.phase == "idle" and s.mode == mode and not s.error])
        for mode in ("request", "off")
    }
    failed = [sample for sample in samples if sample.error]
    return {
        "requests": len(samples),
        "errors": len(failed),
        "error_messages": sorted({sample.error for sample in failed})[:5],
        "throttled": sum(sample.throttled for sample in samples),
        "mean_k_idle": _rounded(course.idle.mean_k),
        "mean_k_flood": _rounded(course.flood.mean_k),
        "acceptance_rate_idle": _rounded(course.idle.acceptance),
        "acceptance_rate_flood": _rounded(course.flood.acceptance),
        "mean_latency_idle_seconds": {mode: _rounded(value) for mode, value in latencies.items()},
        "tokens_per_second_flood": {
            _key(mode): _rounded(median(speeds) if speeds else None, 1) for mode, speeds in course.slices.items()
        },
        "slices_tokens_per_second": {
            _key(mode): [round(speed, 1) for speed in speeds] for mode, speeds in course.slices.items()
        },
        "flood_speed_ratio": _flood_ratio(course.slices),
        "goodput_flood": {
            "predicted": _rounded(course.flood.predicted_goodput, 1),
            "measured": _rounded(course.flood.goodput, 1),
        },
        "replicas": _changes(snapshots),
        "phases": [
            {"name": phase.name, "start": round(phase.start, 1), "end": round(phase.end, 1)} for phase in course.phases
        ],
        "hardware": hardware,
    }


def verdicts(summary: dict[str, Any]) -> list[Claim]:
    """Each claim, judged by the summary alone."""
    idle_k, flood_k = summary["mean_k_idle"], summary["mean_k_flood"]
    latency, speed = summary["mean_latency_idle_seconds"], summary["tokens_per_second_flood"]
    latency_ratio = _ratio(latency["request"], latency["off"])
    ratio = summary["flood_speed_ratio"]
    changes = summary["replicas"]
    ready = [change["ready"] for change in changes]
    second = [change["phase"] for change in changes if change["replicas"] >= 2]
    came = bool(second) and second[0] in FLOODS and max(ready) >= 2
    went = bool(changes) and changes[-1]["replicas"] == 1
    path = " → ".join(str(count) for index, count in enumerate(ready) if index == 0 or ready[index - 1] != count)
    return [
        Claim("no request failed", summary["errors"] == 0, f"{summary['errors']} of {summary['requests']}"),
        Claim(
            f"idle, it speculates: mean k of at least {MIN_IDLE_K:g}",
            idle_k is not None and idle_k >= MIN_IDLE_K,
            _shown(idle_k),
        ),
        Claim(
            "flooded, it speculates less",
            idle_k is not None and flood_k is not None and flood_k < idle_k,
            f"mean k {_shown(idle_k)} → {_shown(flood_k)}",
        ),
        Claim(
            f"idle, latency is at most {MAX_IDLE_LATENCY_RATIO:g} of that without speculation",
            latency_ratio is not None and latency_ratio <= MAX_IDLE_LATENCY_RATIO,
            f"{_shown(latency_ratio)} ({_shown(latency['request'])} s against {_shown(latency['off'])} s)",
        ),
        Claim(
            f"flooded, tokens/s are not below {MIN_FLOOD_SPEED_RATIO:g} of the better of off and fixed {FIXED_TOKENS}",
            ratio is not None and ratio["mean"] + ratio["error"] >= MIN_FLOOD_SPEED_RATIO,
            (f"{_shown(ratio['mean'])} ± {_shown(ratio['error'])}" if ratio else "unknown")
            + " ("
            + ", ".join(f"{mode} {_shown(value)}" for mode, value in speed.items())
            + ")",
        ),
        Claim("a second replica comes in the flood and goes after it", came and went, f"ready replicas {path or '-'}"),
    ]


def _flood_ratio(slices: Mapping[Mode, Sequence[float]]) -> dict[str, float] | None:
    """`request` over the better of the others, round by round: the geometric mean, and the standard error of that mean,
    which is all that a few rounds on a shared machine can tell. None when fewer than two rounds were measured.
    """
    others = [mode for mode in slices if mode != "request"]
    best = max(others, key=lambda mode: median(slices[mode] or [0.0]))
    logs = [log(one / other) for one, other in zip(slices["request"], slices[best], strict=True) if one and other]
    if len(logs) < 2:
        return None
    mean = exp(fmean(logs))
    return {"mean": round(mean, 3), "error": round(mean * stdev(logs) / sqrt(len(logs)), 3)}


def _changes(snapshots: Sequence[Snapshot]) -> list[dict[str, Any]]:
    """When the number of replicas changed, and to what."""
    changes: list[dict[str, Any]] = []
    for snapshot in snapshots:
        counts = {"replicas": snapshot.replicas, "ready": snapshot.ready_replicas}
        if not changes or any(changes[-1][key] != value for key, value in counts.items()):
            changes.append({"at": round(snapshot.at, 1), "phase": snapshot.phase, **counts})
    return changes


def _key(mode: Mode) -> str:
    return f"fixed_{FIXED_TOKENS}" if mode == "fixed" else mode


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"
