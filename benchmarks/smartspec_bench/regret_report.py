"""What `regret` found: for each world the fixed length that was best in hindsight, and what the policies lost to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from smartspec.loadgen.estimates import Ratio, ratio
from smartspec_bench.record import Record
from smartspec_bench.regret_worlds import WORLDS

matplotlib.use("Agg")  # needs no display; before pyplot
from matplotlib import pyplot as plt

POLICIES = ("request", "batch")
COLOURS = {"request": "#d62728", "batch": "#fd8d3c"}
MOST_REGRET, MOST_STATIONARY_REGRET = 0.01, 0.005

Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Regret:
    """What *policy* lost in *world* to the best fixed length, as a share of that one's speed (negative: it won).

    `fixed` is the best over the whole; `phases` are each against the length that was best in that phase alone, which no
    server could have known.
    """

    world: str
    policy: str
    fixed: str
    whole: Ratio
    phases: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The estimate."""
        return 1.0 - self.whole.middle

    @property
    def interval(self) -> tuple[float, float]:
        """Where it lies with 95 %."""
        return 1.0 - self.whole.high, 1.0 - self.whole.low


def regrets(runs: Runs) -> list[Regret]:
    """Every policy in every world in which it and some fixed length were run with the same seeds."""
    found: list[Regret] = []
    for world in dict.fromkeys(run["world"] for run in runs):
        modes = _by_mode([run for run in runs if run["world"] == world])
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in modes.values())))
        fixed = [mode for mode in modes if mode not in POLICIES]
        if not seeds or not fixed:
            continue
        speeds = {mode: np.array([by_seed[seed]["speed"] for seed in seeds]) for mode, by_seed in modes.items()}
        phases = {mode: np.array([by_seed[seed]["phases"] for seed in seeds]) for mode, by_seed in modes.items()}
        best = max(fixed, key=lambda mode: float(speeds[mode].mean()))
        best_phases = np.max([phases[mode].mean(axis=0) for mode in fixed], axis=0)
        found += [
            Regret(
                world,
                policy,
                best,
                ratio([speeds[policy].tolist()], [speeds[best].tolist()]),
                tuple((1.0 - phases[policy].mean(axis=0) / best_phases).tolist()),
            )
            for policy in POLICIES
            if policy in modes
        ]
    return found


def overall(found: Sequence[Regret], policy: str, *, stationary: bool | None = None) -> float:
    """Mean regret of *policy* over worlds, all of them or those whose load and texts stay, or change."""
    chosen = [r.middle for r in found if r.policy == policy and stationary in (None, WORLDS[r.world].stationary)]
    return float(np.mean(chosen)) if chosen else float("nan")


def markdown(record: Record) -> str:
    """The tables as they are printed and stored."""
    found = regrets(record.runs)
    lines = [
        "Regret: the share of the best fixed length's goodput that a policy lost in simulation (negative: it gained).",
        "",
        "| world | best fixed | `request` | 95 % | by phase | `batch` | 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for world in dict.fromkeys(r.world for r in found):
        by_policy = {r.policy: r for r in found if r.world == world}
        request, batch = by_policy["request"], by_policy["batch"]
        phases = " ".join(_percent(p) for p in request.phases) if len(request.phases) > 1 else ""
        lines.append(
            f"| {world} | {request.fixed} | {_percent(request.middle)} | {_interval(request)} | {phases} "
            f"| {_percent(batch.middle)} | {_interval(batch)} |"
        )
    lines += ["", "| mean over worlds | `request` | `batch` | target for `request` |", "|---|---|---|---|"]
    kinds: tuple[tuple[str, bool | None, float | None], ...] = (
        ("all", None, MOST_REGRET), ("stationary", True, MOST_STATIONARY_REGRET), ("changing", False, None)
    )  # fmt: skip
    for name, stationary, most in kinds:
        request_mean, batch_mean = (overall(found, policy, stationary=stationary) for policy in POLICIES)
        verdict = ""
        if most is not None:
            verdict = f"at most {_percent(most)}: {'reached' if request_mean <= most else 'not reached'}"
        lines.append(f"| {name} | {_percent(request_mean)} | {_percent(batch_mean)} | {verdict} |")
    seeds = len({run["seed"] for run in record.runs})
    lines += ["", f"{seeds} seeds, paired; each phase is held against the length that was best in that phase alone."]
    return "\n".join(lines) + "\n"


def draw(record: Record) -> None:
    """Cumulative regret over time, a panel for each world, beside the record."""
    found = [r for r in regrets(record.runs) if r.policy == "request"]
    columns = 4
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(14, 2.6 * rows), layout="constrained", squeeze=False)
    for axis, regret in zip(axes.flat, found, strict=False):
        world = WORLDS[regret.world]
        modes = _by_mode([run for run in record.runs if run["world"] == regret.world])
        kept = {m: np.mean([run["kept"] for run in modes[m].values()], axis=0) for m in (*POLICIES, regret.fixed)}
        seconds = np.linspace(0.0, world.seconds, len(kept["request"]) + 1)[1:]
        for policy in POLICIES:
            lost = (kept[regret.fixed] - kept[policy]) / max(1.0, kept[regret.fixed][-1])
            axis.plot(seconds, 100 * lost, color=COLOURS[policy], label=policy)
        axis.axhline(0.0, color="0.6", linewidth=0.8)
        for border in world.borders:
            axis.axvline(border, color="0.85", linewidth=0.8)
        axis.set_title(f"{regret.world} (best: {regret.fixed})", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    if found:
        axes[0][0].legend(fontsize=7)
    figure.supylabel("tokens behind the best fixed length, % of all", fontsize=8)
    figure.supxlabel("simulated seconds", fontsize=8)
    figure.savefig(record.path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def _by_mode(runs: Runs) -> dict[str, dict[int, Mapping[str, Any]]]:
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault(run["mode"], {})[run["seed"]] = run
    return found


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _interval(regret: Regret) -> str:
    low, high = regret.interval
    return f"{100 * low:+.1f} to {100 * high:+.1f}"
