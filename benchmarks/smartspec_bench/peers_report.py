"""The results of `peers`: a table, the lines that should hold with how they stand, and a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartspec.loadgen.estimates import Ratio, ratio
from smartspec_bench.record import Record
from smartspec_bench.session import rounds_of, share_of_others

LABELS = {
    "vllm-off": "vLLM, no speculation",
    "vllm-draft-4": "vLLM, draft model k = 4",
    "vllm-ngram-4": "vLLM, ngram k = 4",
    "vllm-schedule": "vLLM, schedule 4 / 2 / 0",
    "smartspec-off": "SmartSpec, off",
    "smartspec-request": "SmartSpec, request",
    "smartspec-fixed-4": "SmartSpec, fixed 4",
    "transformers": "transformers, assisted, one at a time",
}


NOTE = (
    "Ratios of mean latency at a rate (lower is better), of tokens per second at once (higher is better), with a "
    "paired bootstrap 95 % interval over rounds and requests. One round at once has no interval, and one round at a "
    "rate shows the spread between requests alone. The best of vLLM's modes is chosen on the runs it is scored on, "
    "which flatters it."
)

SHARES = {"first": 0.0, "a quarter": 0.25, "half": 0.5, "three quarters": 0.75, "last": 1.0}
SERVED_NOTE = (
    "Seconds, means over rounds. Without speculation all end together; with it who is easy to guess ends before who is "
    "not, and the mean and the last, by which tokens per second are counted, tell two stories."
)


@dataclass(frozen=True)
class Line:
    """A ratio that should keep a bound (`at_most`: from above; else from below), as it stands."""

    what: str
    load: str
    against: str
    ratio: Ratio
    bound: float | None = None
    at_most: bool = True

    @property
    def verdict(self) -> str:
        """What became of the bound; empty where there is none."""
        if self.bound is None:
            return ""
        met = self.ratio.middle <= self.bound if self.at_most else self.ratio.middle >= self.bound
        return f"{'reached' if met else '**not reached**'}: {'at most' if self.at_most else 'at least'} {self.bound:g}"


def loads_of(runs: Iterable[dict[str, Any]]) -> list[str]:
    """Rates in rising order, then what comes all at once."""
    names = {run["load"] for run in runs}
    return sorted(names, key=lambda name: (not name.endswith("/s"), float(name.split("/")[0].split()[0])))


def compare(runs: Sequence[dict[str, Any]], mode: str, other: str, load: str) -> Ratio | None:
    """*mode* over *other*: mean latencies at a rate, tokens per second at once; over the rounds that both have."""
    one, two = rounds_of(runs, mode=mode, load=load), rounds_of(runs, mode=other, load=load)
    both = sorted(one.keys() & two.keys())
    if not both:
        return None
    if load.endswith("/s"):
        return ratio([one[r]["latencies"] for r in both], [two[r]["latencies"] for r in both])
    return ratio([[one[r]["tokens_per_second"]] for r in both], [[two[r]["tokens_per_second"]] for r in both])


def best(runs: Sequence[dict[str, Any]], maker: str, load: str) -> str | None:
    """The mode of *maker* with the lowest mean latency, or for a batch the most tokens per second: chosen on the very
    runs it is then compared on, which can only flatter it."""
    means = {}
    for mode in LABELS:
        if mode.startswith(maker) and (taken := rounds_of(runs, mode=mode, load=load)):
            if load.endswith("/s"):
                means[mode] = float(np.mean(np.concatenate([run["latencies"] for run in taken.values()])))
            else:
                means[mode] = -float(np.mean([run["tokens_per_second"] for run in taken.values()]))
    return min(means, key=means.__getitem__) if means else None


def lines(runs: Sequence[dict[str, Any]]) -> list[Line]:
    """Every comparison that the runs allow."""
    found: list[Line] = []

    def add(what: str, mode: str, other: str | None, load: str, bound: float | None) -> None:
        at_most = load.endswith("/s")
        if other is not None and (value := compare(runs, mode, other, load)) is not None:
            found.append(Line(what, load, LABELS[other], value, bound, at_most))

    for load in loads_of(runs):
        rate = float(load[:-2]) if load.endswith("/s") else None
        add("off", "smartspec-off", "vllm-off", load, 1.2 if rate is None else 1.0)
        bound = 1.2 if rate is None else (0.85 if rate >= 2 else 1.0)
        add("request", "smartspec-request", best(runs, "vllm", load), load, bound)
        for other in ("smartspec-off", "smartspec-fixed-4", "transformers"):
            add("request", "smartspec-request", other, load, None)
        for mode in ("vllm-draft-4", "vllm-ngram-4", "vllm-schedule"):
            add(LABELS[mode], mode, "vllm-off", load, None)
    return found


def markdown(record: Record) -> str:
    """The table, the comparisons, and how to read them."""
    runs, header, options = record.runs, record.header, record.header["options"]
    loads = loads_of(runs)
    introduction = [
        f"{options['target']} with {options['draft']}, bf16, greedy, prompts of 200 characters,",
        f"{options['tokens_per_request']} new tokens, {options['threads']} threads on the same cores.",
        f"vLLM and SmartSpec run on the same libraries: {', '.join(options['libraries']) or 'none beside their own'}.",
        "At a rate: mean end-to-end seconds of Poisson arrivals. At once: mean seconds, tokens per second.",
        "In brackets: rounds.",
    ]
    text = [
        f"# Against other servers, {header['machine']}",
        "",
        f"{header['date']}, commit {header['commit']}; "
        + ", ".join(f"{name} {value}" for name, value in header["versions"].items())
        + ".",
        "",
        " ".join(introduction),
        "",
        "| | " + " | ".join(loads) + " |",
        "|---|" + "---|" * len(loads),
    ]
    for mode, label in LABELS.items():
        cells = [_cell(runs, mode, load) for load in loads]
        if any(cell != "-" for cell in cells):
            text.append(f"| {label} | " + " | ".join(cells) + " |")
    text += [
        "",
        NOTE,
        "",
        "| | load | against | ratio | |",
        "|---|---|---|---|---|",
    ]
    for line in lines(runs):
        shown = str(line.ratio) if line.ratio.pairs > 1 else f"{line.ratio.middle:.2f}"
        text.append(f"| {line.what} | {line.load} | {line.against} | {shown} | {line.verdict} |")
    for load in loads:
        if not load.endswith("/s"):
            text += ["", f"## {load}: when each was served", "", SERVED_NOTE, "", *served(runs, load)]
    return "\n".join([*text, "", share_of_others(runs)]) + "\n"


def served(runs: Sequence[dict[str, Any]], load: str) -> list[str]:
    """For each mode, seconds until so many of the requests that came at once were whole: the profile behind its tokens
    per second, which are given by the last one."""
    rows = ["| | " + " | ".join(SHARES) + " | mean |", "|---|" + "---|" * (len(SHARES) + 1)]
    for mode, label in LABELS.items():
        if taken := rounds_of(runs, mode=mode, load=load):
            latencies = [run["latencies"] for run in taken.values()]
            points = np.mean([np.quantile(each, list(SHARES.values())) for each in latencies], axis=0)
            shown = [f"{seconds:.2f}" for seconds in (*points, np.mean(np.concatenate(latencies)))]
            rows.append(f"| {label} | " + " | ".join(shown) + " |")
    return rows


def _cell(runs: Sequence[dict[str, Any]], mode: str, load: str) -> str:
    taken = rounds_of(runs, mode=mode, load=load)
    if not taken:
        return "-"
    mean = float(np.mean(np.concatenate([run["latencies"] for run in taken.values()])))
    if load.endswith("/s"):
        return f"{mean:.2f} ({len(taken)})"
    speed = float(np.mean([run["tokens_per_second"] for run in taken.values()]))
    return f"{mean:.1f} s, {speed:.0f} tok/s ({len(taken)})"


def write(record: Record) -> None:
    """`NAME.md` and `NAME.png` beside the record."""
    if not record.runs:
        raise SystemExit("nothing was measured: the budget was too small for one block")
    text = markdown(record)
    record.path.with_suffix(".md").write_text(text)
    _draw(record)
    print(text)


def _draw(record: Record) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    loads = loads_of(record.runs)
    rates = [load for load in loads if load.endswith("/s")]
    batches = [load for load in loads if not load.endswith("/s")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=[3, 2])
    modes = [mode for mode in LABELS if any(run["mode"] == mode for run in record.runs)]
    colours = {mode: f"C{index}" for index, mode in enumerate(LABELS)}
    for mode in modes:
        points = [(float(load[:-2]), rounds_of(record.runs, mode=mode, load=load)) for load in rates]
        drawn = [
            (rate, np.mean(np.concatenate([run["latencies"] for run in taken.values()])))
            for rate, taken in points
            if taken
        ]
        if drawn:
            style = "-" if mode.startswith("smartspec") else "--"
            axes[0].plot(*zip(*drawn, strict=True), style, marker="o", label=LABELS[mode], color=colours[mode])
    axes[0].set(xlabel="requests per second", ylabel="mean latency, seconds", yscale="log")
    axes[0].legend(fontsize=7)
    for load in batches[:1]:
        shown = [mode for mode in modes if rounds_of(record.runs, mode=mode, load=load)]
        speeds = [
            np.mean([run["tokens_per_second"] for run in rounds_of(record.runs, mode=mode, load=load).values()])
            for mode in shown
        ]
        axes[1].barh([LABELS[mode] for mode in shown], speeds, color=[colours[mode] for mode in shown])
        axes[1].invert_yaxis()
        axes[1].tick_params(labelsize=7)
        axes[1].set(xlabel=f"tokens per second, {load}")
    figure.suptitle(f"{record.header['machine']}, {record.header['date'][:10]}", fontsize=9)
    figure.savefig(record.path.with_suffix(".png"), dpi=120)
    plt.close(figure)
