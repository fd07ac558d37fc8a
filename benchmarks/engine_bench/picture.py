"""The picture beside the record: step times, what they are of the bound, host time, and predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_bench.bench import of_section
from engine_bench.host import PARTS

STYLES = {"compiled": "o-", "eager": "o--", "bare eager": "s--", "bare compiled": "*"}
LABELS = {"compiled": "ours", "eager": "ours, eager", "bare eager": "bare, eager", "bare compiled": "bare, compiled"}


def draw(path: Path, header: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """Four panels; a section that was not measured leaves its panel empty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    _steps(axes[0][0], runs)
    _ratios(axes[0][1], runs)
    _host(axes[1][0], runs)
    _predictions(axes[1][1], runs)
    figure.suptitle(f"{header['machine']}, {header['options']['threads']} threads, {header['date'][:10]}", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _decoding(runs: Sequence[Mapping[str, Any]], section: str) -> list[dict[str, Any]]:
    found = of_section(runs, section)
    return [run for run in found if run.get("rows") == 1 and run.get("context") == 128]


def _steps(axes: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    found = _decoding(runs, "forward")
    for name, style in STYLES.items():
        points = [(run["batch"], 1e3 * run["medians"][name]) for run in found if name in run["medians"]]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=LABELS[name], markersize=9 if style == "*" else 5)
    bounds = [(r["batch"], 1e3 * max(r["memory_seconds"], r["compute_seconds"])) for r in _decoding(runs, "limit")]
    if bounds:
        axes.plot(*zip(*bounds, strict=True), "k:", label="memory or arithmetic")
    axes.set(xscale="log", yscale="log", xlabel="requests, one row each, context 128", ylabel="milliseconds a step")
    axes.set_xscale("log", base=2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _ratios(axes: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    found = of_section(runs, "forward")
    for place, run in enumerate(found):
        ratio = run["ratios"]["compiled"]
        colour = "tab:blue" if "bare compiled" in run["medians"] else "tab:grey"
        axes.plot([ratio["low"], ratio["high"]], [place, place], color=colour)
        axes.plot(ratio["middle"], place, "o", color=colour)
    axes.axvline(1.0, color="k", linewidth=0.8)
    axes.axvline(1.15, color="k", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(found)), [f"{r['batch']} x {r['rows']}, {r['context']}" for r in found], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="ours over the faster bare forward (blue: compiled was measured too)", ylabel="requests, context")


def _host(axes: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    found = of_section(runs, "host")
    below = [0.0] * len(found)
    for name, label in PARTS.items():
        heights = [1e6 * run["parts"][name] for run in found]
        axes.bar([f"{run['requests']}" for run in found], heights, bottom=below, label=label)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set(xlabel="requests", ylabel="microseconds a step besides forwards")
    if found:
        axes.set_ylim(0, 1.9 * max(below))  # room for the legend
        axes.legend(fontsize=7, ncols=2, loc="upper center")


def _predictions(axes: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    largest = 0.0
    for run in of_section(runs, "time-model"):
        one, two = ([1e3 * seconds for seconds in run[name]] for name in ("predicted", "measured"))
        axes.plot(two, one, ".", markersize=4, label=run["load"])
        largest = max(largest, *one, *two)
    axes.plot([0, largest], [0, largest], "k", linewidth=0.8)
    axes.set(xlabel="milliseconds measured", ylabel="milliseconds predicted")
    if largest:
        axes.legend(fontsize=8)
