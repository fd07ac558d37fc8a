"""The picture: each request over time, and how many were answered within a time."""

from collections.abc import Sequence
from pathlib import Path

from smartspec.config import ConfigError
from smartspec.loadgen.summary import Summary

COLOURS = ("#0b62a4", "#b25200", "#8a3f7b", "#2a7f62", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v")


def check_drawable(file: Path) -> None:
    """Raise ConfigError, before anything is measured, when there will be no picture."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("picture: needs matplotlib; pip install '.[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in kinds:
        raise ConfigError(f"picture: {file} must end in one of .{', .'.join(sorted(kinds))}")


def draw(summaries: Sequence[Summary], described: str, file: Path) -> None:
    """Write the picture to *file*; modes differ in colour, marker and line."""
    from matplotlib import pyplot

    figure, (over_time, within) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for index, summary in enumerate(summaries):
        answered = summary.answered
        if not answered:
            continue
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        over_time.plot(
            [sample.due for sample in answered],
            [sample.latency for sample in answered],
            marker, color=colour, markersize=4, alpha=0.6, markeredgewidth=0, label=summary.mode,
        )  # fmt: skip
        for name, style in (("latency", "-"), ("ttft", "--")):
            times = sorted(value for sample in answered if (value := getattr(sample, name)) is not None)
            shares = [(rank + 1) / len(times) for rank in range(len(times))]
            what = "whole answer" if name == "latency" else "first token"
            within.step(times, shares, style, where="post", color=colour, label=f"{summary.mode}: {what}")
    over_time.set(xlabel="due, seconds from the start", ylabel="whole answer, seconds", title=described)
    within.set(xlabel="seconds", ylabel="share of requests answered within", title="Latency", ylim=(0, 1.02))
    for axes in (over_time, within):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_xlim(left=0)
    over_time.set_ylim(bottom=0)
    within.legend(framealpha=0.85, edgecolor="none", fontsize=8, loc="lower right")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
