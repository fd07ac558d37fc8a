"""The results of `paper`: tables, the lines that should hold with how they stand, and a picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartspec.loadgen.estimates import Ratio, best_in_hindsight, ratio
from smartspec_bench import paper_profile
from smartspec_bench.paper_figure import draw
from smartspec_bench.paper_profile import STEPS, counted
from smartspec_bench.record import Record
from smartspec_bench.scenarios import ALONE
from smartspec_bench.session import rounds_of, share_of_others

MODES = ("off", "fixed 1", "fixed 3", "fixed 5", "fixed 7", "batch", "request")
FIXED = ("off", "fixed 1", "fixed 3", "fixed 5", "fixed 7")
TAX = "held at k = 0"
TAX_BOUND = 0.01
NOTE = (
    "Ratios of mean latency, paired by prompt and arrival, with a bootstrap 95 % interval over rounds and requests. "
    "The best fixed length (off is length 0) is chosen on odd rounds and scored on even ones, and the other way round: "
    "two lengths where the halves differ. With * it was chosen on its own round, for there was one only, and then the "
    "interval knows no spread between runs."
)
HEAD = "| workload | mode | mean k | accepted | predicted / measured time | predicted / kept | time error | probes |"

Runs = Sequence[dict[str, Any]]
Cell = tuple[str, str]
"""Workload and load."""


@dataclass(frozen=True)
class Verdict:
    """`request` against *against* in one cell: the middle should be at most *middle*, the upper end at most *high*."""

    cell: Cell
    against: str
    ratio: Ratio
    middle: float
    high: float | None
    held_out: bool = True

    @property
    def text(self) -> str:
        """Reached or not, and what."""
        met = self.ratio.middle <= self.middle and (self.high is None or self.ratio.high <= self.high)
        bound = f"at most {self.middle:g}" + ("" if self.high is None else f", upper end {self.high:g}")
        return f"{'reached' if met else '**not reached**'}: {bound}"


def cells(runs: Runs) -> list[Cell]:
    """Every cell of the comparison of modes, in the order in which it was measured first, steady loads first."""
    found = dict.fromkeys((run["workload"], run["load"]) for run in runs if run["workload"] != TAX)
    return sorted(found, key=lambda cell: cell[1].startswith(("step", "shift")))


def by_mode(runs: Runs, cell: Cell) -> dict[str, dict[int, dict[str, Any]]]:
    """Mode, then round, of one cell."""
    taken = {mode: rounds_of(runs, mode=mode, workload=cell[0], load=cell[1]) for mode in MODES}
    return {mode: rounds for mode, rounds in taken.items() if rounds}


def mean_latency(rounds: Iterable[Mapping[str, Any]]) -> float:
    """Over all requests of *rounds*."""
    return float(np.mean(np.concatenate([run["latencies"] for run in rounds])))


def verdicts(runs: Runs) -> list[Verdict]:
    """Every line that the runs can speak to."""
    found = []
    for cell in cells(runs):
        taken = by_mode(runs, cell)
        if "request" not in taken:
            continue
        fixed = {mode: {r: run["latencies"] for r, run in taken[mode].items()} for mode in FIXED if mode in taken}
        fixed_rounds = set.intersection(set(taken["request"]), *(set(rounds) for rounds in fixed.values()))
        if not fixed_rounds:
            continue
        usable = {mode: {r: rounds[r] for r in fixed_rounds} for mode, rounds in fixed.items()}
        best = best_in_hindsight(usable)
        latencies = {r: taken["request"][r]["latencies"] for r in fixed_rounds}
        pairs = [(latencies[r], usable[mode][r]) for r, mode in best.by_round.items()]
        scored = ratio([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
        found.append(Verdict(cell, f"best fixed: {', '.join(best.modes)}", scored, 1.01, 1.05, best.held_out))
        if "off" in usable:
            order = sorted(fixed_rounds)
            against_off = ratio([latencies[r] for r in order], [usable["off"][r] for r in order])
            lowest = cell == ("code", ALONE)
            found.append(Verdict(cell, "off", against_off, 0.5 if lowest else 1.01, None if lowest else 1.05))
    return found


def tax(runs: Runs) -> dict[str, Ratio]:
    """What a draft costs that is held at k = 0: step time and latency of saturated batches, with over without."""
    one = rounds_of(runs, mode="with a draft", workload=TAX)
    two = rounds_of(runs, mode="without a draft", workload=TAX)
    both = sorted(one.keys() & two.keys())
    if not both:
        return {}
    ratios = {"mean latency": ratio([one[r]["latencies"] for r in both], [two[r]["latencies"] for r in both])}
    if all(counted(taken[r]["counters"], STEPS) for taken in (one, two) for r in both):
        ratios["step time"] = ratio([[step_seconds(one[r])] for r in both], [[step_seconds(two[r])] for r in both])
    return ratios


def step_seconds(run: Mapping[str, Any]) -> float:
    """Mean seconds of an engine step in *run*."""
    return counted(run["counters"], "smartspec_step_seconds_total") / counted(run["counters"], STEPS)


def engine_row(runs: Runs) -> list[str]:
    """The engine's own numbers over *runs*: mean k, acceptance by position, predicted over measured, model error."""
    total: dict[str, float] = {}
    for run in runs:
        for name, value in run["counters"].items():
            total[name] = total.get(name, 0.0) + value

    def share(above: str, below: str, form: str = ".2f") -> str:
        divisor = counted(total, below)
        return format(counted(total, above) / divisor, form) if divisor else "-"

    drafts = counted(total, "vllm:spec_decode_num_drafts_total")
    name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    positions = {int(k.partition("position=")[2].rstrip("}")): v for k, v in total.items() if k.startswith(name)}
    accepted = " ".join(f"{positions[p] / drafts:.2f}" for p in sorted(positions)[:4]) if drafts else "-"
    return [
        share("smartspec_speculative_tokens_sum", "smartspec_speculative_tokens_count"),
        accepted,
        share("smartspec_predicted_step_seconds_total", "smartspec_step_seconds_total", ".3f"),
        share("smartspec_predicted_tokens_total", "smartspec_tokens_kept_total", ".3f"),
        share("smartspec_time_model_error_ratio_sum", "smartspec_time_model_error_ratio_count", ".1%"),
        f"{counted(total, 'smartspec_probes_total'):.0f}",
    ]


def markdown(record: Record) -> str:
    """The tables, and how to read them."""
    runs, header, options = record.runs, record.header, record.header["options"]
    versions = ", ".join(f"{name} {value}" for name, value in header["versions"].items())
    introduction = [
        f"{options['target']} with {options['draft']}, bf16, {options['threads']} threads,",
        f"{options['tokens_per_request']} new tokens per request. Mean latency in seconds from due to whole;",
        f"`{ALONE}` is one request after the other, what a rate near zero would measure.",
    ]
    text = [
        f"# Adaptive against fixed speculation, {header['machine']}",
        "",
        f"{header['date']}, commit {header['commit']}; {versions}.",
        "",
        " ".join(introduction),
        *_latency_tables(runs),
        "",
        "## `request` against the best fixed length and against off",
        "",
        NOTE,
        "",
        "| workload | load | against | ratio | rounds | |",
        "|---|---|---|---|---|---|",
        *(_verdict_row(verdict) for verdict in verdicts(runs)),
    ]
    if ratios := tax(runs):
        text += ["", "## A draft that is held at k = 0, over no draft at all", ""]
        text += ["| | ratio | rounds | |", "|---|---|---|---|"]
        text += [_tax_row(name, value) for name, value in ratios.items()]
    if profile := paper_profile.table(cells(runs), runs, FIXED[1:]):
        text += ["", "## Where the time went", "", paper_profile.NOTE, "", *profile]
    text += ["", "## What the engine counted", ""]
    text += ["Accepted: of the proposals, the share with the 1st, 2nd ... token accepted.", "", HEAD, "|" + "---|" * 8]
    for workload in dict.fromkeys(cell[0] for cell in cells(runs)):
        for mode in MODES:
            if chosen := [run for run in runs if run["workload"] == workload and run["mode"] == mode]:
                text.append(f"| {workload} | {mode} | " + " | ".join(engine_row(chosen)) + " |")
    return "\n".join([*text, "", share_of_others(runs)]) + "\n"


def _verdict_row(verdict: Verdict) -> str:
    against = verdict.against + ("" if verdict.held_out else "*")
    cells_ = [*verdict.cell, against, str(verdict.ratio), str(verdict.ratio.rounds), verdict.text]
    return "| " + " | ".join(cells_) + " |"


def _tax_row(name: str, value: Ratio) -> str:
    bound = ""
    if name == "step time":
        bound = f"{'reached' if abs(value.middle - 1) <= TAX_BOUND else '**not reached**'}: within 1 %"
    return f"| {name} | {value.middle:.3f} ({value.low:.3f} to {value.high:.3f}) | {value.rounds} | {bound} |"


def _latency_tables(runs: Runs) -> list[str]:
    text = []
    steady = [cell for cell in cells(runs) if not cell[1].startswith(("step", "shift"))]
    for workload in dict.fromkeys(cell[0] for cell in steady):
        loads = [load for name, load in steady if name == workload]
        counts = [max(len(taken) for taken in by_mode(runs, (workload, load)).values()) for load in loads]
        head = " | ".join(f"{load} ({count} rounds)" for load, count in zip(loads, counts, strict=True))
        text += ["", f"## {workload}", "", f"| | {head} |", "|---|" + "---|" * len(loads)]
        for mode in MODES:
            taken = [by_mode(runs, (workload, load)).get(mode) for load in loads]
            if any(taken):
                shown = [f"{mean_latency(rounds.values()):.2f}" if rounds else "-" for rounds in taken]
                text.append(f"| {mode} | " + " | ".join(shown) + " |")
    for workload, load in (cell for cell in cells(runs) if cell not in steady):
        moved = by_mode(runs, (workload, load))
        parts = next(iter(next(iter(moved.values())).values()))["parts"]
        text += [
            "",
            f"## {workload}: {load}",
            "",
            "| | " + " | ".join(name for name, _, _ in parts) + " |",
            "|---|" + "---|" * len(parts),
        ]
        for mode, rounds in moved.items():
            latencies = [run["latencies"] for run in rounds.values()]
            shown = [f"{np.mean([values[start:end] for values in latencies]):.2f}" for _, start, end in parts]
            text.append(f"| {mode} | " + " | ".join(shown) + " |")
    return text


def write(record: Record) -> None:
    """`NAME.md` and `NAME.png` beside the record."""
    if not record.runs:
        raise SystemExit("nothing was measured: the budget was too small for one block")
    text = markdown(record)
    record.path.with_suffix(".md").write_text(text)
    draw(record)
    print(text)
