"""The demo in one picture: latency, k and replicas over time, phases shaded, and the comparisons beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from smartspec_demo.load import FIXED_TOKENS, Mode, Sample
from smartspec_demo.monitor import Snapshot
from smartspec_demo.scenario import Phase

COLORS: dict[Mode, str] = {"request": "#2563eb", "off": "#94a3b8", "fixed": "#f59e0b"}
NAMES: dict[Mode, str] = {"request": "SmartSpec", "off": "off", "fixed": f"fixed {FIXED_TOKENS}"}
SHADES = {"idle": "#ecfdf5", "busy": "#fefce8", "flood": "#fee2e2", "compare": "#ffedd5", "calm": "#ecfdf5"}
INK, FAINT = "#0f172a", "#64748b"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
}


def draw(
    path: Path,
    samples: Sequence[Sample],
    snapshots: Sequence[Snapshot],
    phases: Sequence[Phase],
    summary: dict[str, Any],
) -> None:
    """Write the picture to *path*."""
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(13, 8.6), layout="constrained")
        try:
            grid = figure.add_gridspec(3, 2, width_ratios=(4.2, 1), height_ratios=(1.25, 1, 1))
            latency = figure.add_subplot(grid[0, 0])
            k = figure.add_subplot(grid[1, 0], sharex=latency)
            replicas = figure.add_subplot(grid[2, 0], sharex=latency)
            _latency(latency, samples)
            _k(k, snapshots)
            _replicas(replicas, snapshots)
            for axes in (latency, k, replicas):
                _shade(axes, phases)
            _name_phases(latency, phases)
            replicas.set_xlabel("seconds")
            if phases:
                latency.set_xlim(phases[0].start, phases[-1].end)
            _bars(figure.add_subplot(grid[0, 1]), "latency when idle (s)", _by_mode(summary, "latency"), "{:.2f}")
            _bars(figure.add_subplot(grid[1, 1]), "tokens/s in the flood", _by_mode(summary, "speed"), "{:.0f}")
            _k_bars(figure.add_subplot(grid[2, 1]), summary)
            figure.suptitle(_title(summary), x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK)
            figure.savefig(path, dpi=120, facecolor="white")
        finally:
            pyplot.close(figure)


def _latency(axes: Axes, samples: Sequence[Sample]) -> None:
    answered = [sample for sample in samples if sample.tokens]
    for mode, color in COLORS.items():
        ours = [sample for sample in answered if sample.mode == mode]
        axes.scatter(
            [sample.started + sample.latency for sample in ours],
            [1000 * sample.latency / sample.tokens for sample in ours],
            s=16,
            color=color,
            alpha=0.75,
            linewidths=0,
            label=NAMES[mode],
        )
    if answered:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylabel("ms per token")
    axes.set_title("Latency of each request, end to end, per token", pad=20)
    if answered:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.06), ncols=3, handletextpad=0.1, columnspacing=1.0)


def _k(axes: Axes, snapshots: Sequence[Snapshot]) -> None:
    known = [(snapshot.at, snapshot.counters.mean_k) for snapshot in snapshots]
    at, k = [at for at, k in known if k is not None], [k for _, k in known if k is not None]
    axes.fill_between(at, k, color=COLORS["request"], alpha=0.15, linewidth=0)
    axes.plot(at, k, color=COLORS["request"], linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens", color=COLORS["request"])
    axes.set_title("Speculative tokens per request and step (k), and requests in hand")
    load = _right(axes)
    load.plot(
        [snapshot.at for snapshot in snapshots],
        [snapshot.running + snapshot.waiting for snapshot in snapshots],
        color="#be123c",
        linewidth=1.1,
    )
    load.set_ylabel("requests", color="#be123c")
    load.set_ylim(bottom=0)


def _replicas(axes: Axes, snapshots: Sequence[Snapshot]) -> None:
    at = [snapshot.at for snapshot in snapshots]
    axes.step(at, [s.replicas for s in snapshots], where="post", color="#a78bfa", linewidth=1.2, linestyle=":")
    axes.fill_between(at, [s.ready_replicas for s in snapshots], step="post", color="#7c3aed", alpha=0.22, linewidth=0)
    axes.step(at, [s.ready_replicas for s in snapshots], where="post", color="#7c3aed", linewidth=1.6)
    axes.set_ylim(0, max((s.replicas for s in snapshots), default=1) + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("replicas", color="#7c3aed")
    axes.set_title("Replicas (ready; dotted: started), and tokens per second")
    speed = _right(axes)
    speed.plot(at, [snapshot.tokens_per_second for snapshot in snapshots], color="#059669", linewidth=1.1)
    speed.set_ylabel("tokens/s", color="#059669")
    speed.set_ylim(bottom=0)


def _right(axes: Axes) -> Axes:
    """A second vertical axis on the right."""
    right = axes.twinx()
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    assert isinstance(right, Axes)
    return right


def _shade(axes: Axes, phases: Sequence[Phase]) -> None:
    for phase in phases:
        axes.axvspan(phase.start, phase.end, color=SHADES.get(phase.name, "white"), zorder=-2, linewidth=0)
        axes.axvline(phase.start, color="#cbd5e1", linewidth=0.6, zorder=-1)


def _name_phases(axes: Axes, phases: Sequence[Phase]) -> None:
    for phase in phases:
        axes.text(
            (phase.start + phase.end) / 2,
            1.02,
            phase.title,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
            color=FAINT,
        )


def _by_mode(summary: dict[str, Any], what: str) -> dict[Mode, float]:
    if what == "latency":
        found = dict(summary["mean_latency_idle_seconds"])
    else:
        found = dict(summary["tokens_per_second_flood"])
        found["fixed"] = found.pop(f"fixed_{FIXED_TOKENS}", None)
    return {mode: found[mode] for mode in COLORS if found.get(mode) is not None}


def _bars(axes: Axes, title: str, values: dict[Mode, float], form: str) -> None:
    drawn = axes.bar(
        [NAMES[mode] for mode in values], list(values.values()), color=[COLORS[mode] for mode in values], width=0.62
    )
    _finish_bars(axes, title, drawn, form)


def _k_bars(axes: Axes, summary: dict[str, Any]) -> None:
    values = [summary["mean_k_idle"] or 0.0, summary["mean_k_flood"] or 0.0]
    _finish_bars(
        axes, "mean k", axes.bar(["idle", "flood"], values, color=["#60a5fa", "#1d4ed8"], width=0.55), "{:.1f}"
    )


def _finish_bars(axes: Axes, title: str, drawn: Any, form: str) -> None:
    axes.bar_label(drawn, fmt=form, padding=2, color=INK, fontsize=10, fontweight="bold")
    axes.set_title(title)
    axes.margins(y=0.18)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)


def _title(summary: dict[str, Any]) -> str:
    hardware = summary["hardware"]
    return (
        f"SmartSpec under a changing load: {summary['requests']} requests, {summary['errors']} errors"
        f"  ·  {hardware['model']}, {hardware['cores']} cores"
    )
