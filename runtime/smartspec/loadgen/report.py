"""What is printed: a table for one mode, one for several side by side, and sentences about what to be wary of."""

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from smartspec.loadgen.summary import PERCENTILES, Spread, Summary, against

NAMES = {
    "ttft": "time to first token",
    "itl": "between pieces of text",
    "tpot": "time per output token",
    "e2e": "whole answer",
}
LATE_SECONDS = 0.05


def show(console: Console, summaries: Sequence[Summary], described: str) -> None:
    """Print all there is to say of *summaries*, of which the first is what others are held against."""
    shown = [summary for summary in summaries if summary.samples]
    if not shown:
        console.print("No request came to its end.")
        return
    console.print(_one(shown[0], described) if len(summaries) == 1 else _several(shown, described))
    for remark in _remarks(shown):
        console.print(Text(remark))


def _one(summary: Summary, described: str) -> RenderableType:
    head = Table(box=None, show_header=False, pad_edge=False)
    head.add_column(style="dim")
    head.add_column()
    head.add_row("load", described)
    head.add_row("answered", f"{len(summary.answered)} of {len(summary.samples)} in {summary.seconds:.1f} s")
    head.add_row("rate", f"{summary.requests_per_second:.2f} requests, {summary.tokens_per_second:.1f} tokens a second")
    for name, value in _speculation(summary):
        head.add_row(name, value)
    times = Table(box=None, pad_edge=False)
    times.add_column("seconds", style="dim")
    for title in ("mean", *(f"p{percentile}" for percentile in PERCENTILES)):
        times.add_column(title, justify="right")
    for name, spread in summary.times.items():
        values = [""] * (1 + len(PERCENTILES)) if spread is None else [_s(spread.mean), *map(_s, spread.percentiles)]
        times.add_row(f"{NAMES[name]} ({name.upper()})", *values)
    return Group(head, Text(), times)


def _speculation(summary: Summary) -> Iterator[tuple[str, str]]:
    speculation = summary.speculation
    if speculation is None:
        yield "speculation", "the server shows no counters at /metrics"
    elif not speculation.drafts:
        yield "speculation", "nothing was proposed"
    else:
        rate, length = speculation.acceptance_rate or 0.0, speculation.mean_acceptance_length or 1.0
        accepted = f"{speculation.accepted:.0f} of {speculation.drafted:.0f} proposed tokens accepted ({rate:.0%})"
        yield "speculation", f"{accepted}; {length:.2f} tokens out of a step with a proposal"
        positions = " ".join(f"{accepted / speculation.drafts:.2f}" for accepted in speculation.accepted_by_position)
        if positions:
            yield "by position", f"{positions}  (accepted, of all proposals)"


def _several(summaries: Sequence[Summary], described: str) -> RenderableType:
    first = summaries[0]
    table = Table(box=None, pad_edge=False)
    table.add_column("mode")
    for title in (
        "answered",
        "tokens/s",
        "TTFT p50",
        "TPOT p50",
        "ITL p99",
        "E2E mean",
        "p50",
        "p95",
        "accepted",
        "length",
    ):
        table.add_column(title, justify="right")
    table.add_column(f"E2E to {first.mode}", justify="right")
    for summary in summaries:
        times, speculation = summary.times, summary.speculation
        e2e, itl = times["e2e"], times["itl"]
        rate = None if speculation is None else speculation.acceptance_rate
        length = None if speculation is None else speculation.mean_acceptance_length
        compared = None if summary is first else against(summary, first)
        table.add_row(
            summary.mode,
            f"{len(summary.answered)}/{len(summary.samples)}",
            f"{summary.tokens_per_second:.1f}",
            _median(times["ttft"]),
            _median(times["tpot"]),
            "" if itl is None else _s(itl.percentiles[3]),
            "" if e2e is None else _s(e2e.mean),
            _median(e2e),
            "" if e2e is None else _s(e2e.percentiles[2]),
            "" if rate is None else f"{rate:.0%}",
            "" if length is None else f"{length:.2f}",
            "" if compared is None else str(compared),
        )
    rounds = max(len(summary.rounds) for summary in summaries)
    note = f"{described}; {rounds} round{'s' if rounds > 1 else ''}, the same requests for every mode. Seconds; " + (
        "ratios of means with their 95 % interval."
        if rounds > 1
        else "ratios of means with a 95 % interval that knows no spread between rounds (--rounds)."
    )
    return Group(table, Text(), Text(note, style="dim"))


def _remarks(summaries: Sequence[Summary]) -> Iterator[str]:
    """What a reader should know before believing a number."""
    for summary in summaries:
        where = f" with {summary.mode}" if len(summaries) > 1 else ""
        for error, times in summary.errors.most_common():
            detail = next((s.detail for s in summary.samples if s.error == error and s.detail), "")
            yield f"{times} failed{where}: {error}{f' ({detail})' if detail else ''}"
        if summary.lateness > LATE_SECONDS:
            yield f"Sent up to {summary.lateness:.2f} s late{where} (p95): this machine was the limit, not the server."
        if cut := sum(run.num_cut_off for run in summary.rounds):
            yield f"{cut} under way{where} when it was stopped: left out"
        elif summary.share_of_others > 0.05:
            yield f"{summary.share_of_others:.0%} of what the server generated meanwhile{where} was for others."


def _median(spread: Spread | None) -> str:
    return "" if spread is None else _s(spread.median)


def _s(seconds: float) -> str:
    """Seconds with three digits that mean something."""
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3f}" if seconds >= 0.1 else f"{seconds:.4f}"
