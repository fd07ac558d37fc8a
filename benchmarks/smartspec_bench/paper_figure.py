"""The picture of `paper`: latency by load for each workload, and how modes came through the step of the load."""

from typing import Any

import matplotlib
import numpy as np

from smartspec_bench.record import Record
from smartspec_bench.session import rounds_of

matplotlib.use("Agg")  # needs no display; before pyplot
from matplotlib import pyplot as plt

COLOURS = {
    "off": "0.5",
    "fixed 1": "#c6dbef",
    "fixed 3": "#9ecae1",
    "fixed 5": "#6baed6",
    "fixed 7": "#3182bd",
    "batch": "#fd8d3c",
    "request": "#d62728",
}


def draw(record: Record) -> None:
    """Write the picture beside the record."""
    runs = record.runs
    workloads = [w for w in ("code", "sampled", "edit") if any(run["workload"] == w for run in runs)]
    stepped = next((run["load"] for run in runs if run["load"].startswith("step")), None)
    figure, axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
    for axis, workload in zip(axes, workloads, strict=False):
        _steady(axis, runs, workload)
    if stepped is not None:
        _stepped(axes[3], runs, stepped)
    axes[0].legend(fontsize=7)
    figure.suptitle(f"{record.header['machine']}, {record.header['date'][:10]}", fontsize=9)
    figure.savefig(record.path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def _steady(axis: Any, runs: list[dict[str, Any]], workload: str) -> None:
    """Latency over that of `off`, because loads differ by far more than modes do."""
    mine = [run for run in runs if run["workload"] == workload and not run["load"].startswith(("step", "shift"))]
    loads = list(dict.fromkeys(run["load"] for run in mine))
    for mode, colour in COLOURS.items():
        points = []
        for load in loads:
            taken, off = rounds_of(mine, mode=mode, load=load), rounds_of(mine, mode="off", load=load)
            both = sorted(taken.keys() & off.keys())
            if both:
                above, below = (np.sum([sum(run[r]["latencies"]) for r in both]) for run in (taken, off))
                points.append((load, above / below))
        if points:
            width = 2.2 if mode == "request" else 1.2
            axis.plot(*zip(*points, strict=True), marker="o", ms=3, lw=width, color=colour, label=mode)
    axis.set(title=workload, ylabel="mean latency / off")
    axis.tick_params(labelsize=8)


def _stepped(axis: Any, runs: list[dict[str, Any]], load: str) -> None:
    """Each request's latency in the order of arrival."""
    for mode in ("off", "fixed 7", "batch", "request"):
        for run in rounds_of(runs, mode=mode, load=load).values():
            axis.plot(run["latencies"], color=COLOURS[mode], lw=1.2, label=mode)
            break
    axis.set(title=load, xlabel="request, in order of arrival", ylabel="latency, seconds")
    axis.legend(fontsize=7)
