"""The live view: a table on a terminal, plain lines where stdout is none."""

from collections.abc import Sequence
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from smartspec_demo.load import Sample
from smartspec_demo.monitor import Counters, Snapshot

PHASES = {
    "start": "starting",
    "idle": "idle, on and off",
    "busy": "busy",
    "flood": "flood",
    "compare": "flood, by mode",
    "calm": "idle again",
}
COLUMNS = (
    "phase", "requests", "tok/s", "k", "accept", "goodput\n(predicted)", "TTFT\nms", "TPOT\nms", "replicas\nready/all",
)  # fmt: skip
LINE_SECONDS = 5.0


class View(Protocol):
    """What shows the demo's course."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(self, *exc: object) -> None:
        """Show no more."""
        ...

    def show(self, snapshots: Sequence[Snapshot], samples: Sequence[Sample]) -> None:
        """Show the state after another second."""
        ...


def row(phase: str, snapshots: Sequence[Snapshot], samples: Sequence[Sample]) -> tuple[str, ...]:
    """One phase, in `COLUMNS`' order, from what was seen in it."""
    seen = [snapshot for snapshot in snapshots if snapshot.phase == phase]
    sent = [sample for sample in samples if sample.phase == phase and not sample.error]
    counters = sum((snapshot.counters for snapshot in seen), Counters())
    seconds = sum(snapshot.seconds for snapshot in seen)
    failed = sum(bool(sample.error) for sample in samples if sample.phase == phase)
    return (
        PHASES[phase],
        f"{len(sent) + failed}" + (f" ({failed} failed)" if failed else ""),
        f"{counters.generated / seconds:.0f}" if seconds else "",
        _number(counters.mean_k, "{:.1f}"),
        _number(counters.acceptance, "{:.0%}"),
        " ".join([_number(counters.goodput, "{:.0f}"), _number(counters.predicted_goodput, "({:.0f})")]).strip(),
        _milliseconds([sample.ttft for sample in sent]),
        _milliseconds([sample.tpot for sample in sent]),
        f"{seen[-1].ready_replicas}/{seen[-1].replicas}" if seen else "",
    )


class LiveTable:
    """One row per phase, the current one alive, with the operator's last decisions below."""

    def __init__(self, console: Console, title: str) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._title = title

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, snapshots: Sequence[Snapshot], samples: Sequence[Sample]) -> None:
        """Redraw."""
        self._live.update(self._render(snapshots, samples))

    def _render(self, snapshots: Sequence[Snapshot], samples: Sequence[Sample]) -> RenderableType:
        table = Table(box=None, expand=True, header_style="bold cyan", padding=(0, 1, 0, 0), pad_edge=False)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "phase" else "right", no_wrap=True)
        now = snapshots[-1]
        passed = [phase for phase in PHASES if any(snapshot.phase == phase for snapshot in snapshots)]
        if len(passed) > 1:
            passed = [phase for phase in passed if phase != "start"]  # one second before the first request
        for phase in passed:
            table.add_row(*row(phase, snapshots, samples), style="bold" if phase == now.phase else "dim")
        at_once = f"{now.running} running, {now.waiting} waiting, {now.tokens_per_second:.0f} tok/s this second"
        lines = [Text(at_once, style="green")]
        lines += [Text(f"policy   {now.policy}", style="yellow")] if now.policy else []
        lines += [Text(f"scaling  {now.scaling}", style="magenta")] if now.scaling else []
        return Panel(Group(table, *lines), title=self._title, subtitle=f"{now.at:.0f} s", border_style="blue")


class PlainLines:
    """A line every few seconds, and one whenever the operator has decided something."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._next = 0.0
        self._phase = self._policy = self._scaling = ""
        self._title = title

    def __enter__(self) -> Self:
        self._console.print(self._title, highlight=False)
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to undo."""

    def show(self, snapshots: Sequence[Snapshot], samples: Sequence[Sample]) -> None:
        """Print what is new."""
        now = snapshots[-1]
        if now.policy != self._policy:
            self._say(now, f"policy {now.policy}")
        if now.scaling != self._scaling:
            self._say(now, f"scaling {now.scaling}")
        if now.phase != self._phase or now.at >= self._next:
            self._next = now.at + LINE_SECONDS
            cells = zip(COLUMNS[1:], row(now.phase, snapshots, samples)[1:], strict=True)
            self._say(
                now,
                f"{PHASES[now.phase]}: "
                + ", ".join(f"{name} {cell}" for name, cell in cells if cell).replace("\n", " "),
            )
        self._phase, self._policy, self._scaling = now.phase, now.policy, now.scaling

    def _say(self, now: Snapshot, text: str) -> None:
        self._console.print(f"[{now.at:5.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)


def view(console: Console, title: str) -> View:
    """The table on a terminal, else lines."""
    return LiveTable(console, title) if console.is_terminal else PlainLines(console, title)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _milliseconds(values: Sequence[float]) -> str:
    return f"{1000 * sum(values) / len(values):.0f}" if values else ""
