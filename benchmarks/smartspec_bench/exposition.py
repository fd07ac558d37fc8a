"""What a result keeps of `/speculation`."""

from collections.abc import Mapping
from statistics import median
from typing import Any


def condensed(speculation: Mapping[str, Any]) -> dict[str, Any]:
    """Of `/speculation`, what a result keeps: the time model's and the last steps' errors, acceptance, probes."""
    steps = [step for step in speculation.get("steps", []) if step["measured_seconds"] > 0]
    ratios = [step["predicted_seconds"] / step["measured_seconds"] for step in steps]
    measured = sum(step["measured_seconds"] for step in steps)
    return {
        "relative_error": speculation.get("time_model", {}).get("relative_error"),
        "last_steps": len(steps),
        "median_absolute_error": round(median(abs(r - 1) for r in ratios), 4) if ratios else None,
        "bias": round(sum(step["predicted_seconds"] for step in steps) / measured - 1, 4) if measured else None,
        "acceptance": speculation.get("acceptance", {}).get("pairs"),
        "probes": speculation.get("probes"),
    }
