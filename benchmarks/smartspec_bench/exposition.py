"""What a server says of itself: the counters of `/metrics`, ours and vLLM's, and our `/speculation`."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

PREFIXES = (
    "smartspec_",
    "vllm:spec_decode_",
    "vllm:generation_tokens",
    "vllm:num_preemptions",
    "vllm:prefix_cache_",
    "vllm:iteration_tokens",
)
IDENTITY = frozenset({"model_name", "engine"})
"""Labels that only say whose counter it is."""


def counters(text: str) -> dict[str, float]:
    """Counters, and histograms' sums and counts, by name with its labels, of an exposition."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(PREFIXES) or family.type not in ("counter", "histogram"):
            continue
        for sample in family.samples:
            if sample.name.endswith(("_total", "_sum", "_count")):
                labels = [f"{name}={value}" for name, value in sorted(sample.labels.items()) if name not in IDENTITY]
                key = f"{sample.name}{{{','.join(labels)}}}" if labels else sample.name
                values[key] = values.get(key, 0.0) + sample.value
    return values


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was counted in between, without what was not."""
    return {
        name: round(value - before.get(name, 0.0), 6) for name, value in after.items() if value != before.get(name, 0.0)
    }


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
