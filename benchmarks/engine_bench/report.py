"""The report: a part for each section, the same text on the screen and in the markdown file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine_bench.neighbours import NOTABLE
from smartspec.loadgen.estimates import Ratio


@dataclass(frozen=True)
class Check:
    """A number that should keep to *bound*, as it stands. *nearness*: it should be within *bound* of 0."""

    what: str
    value: float
    bound: float
    shown: str = ""
    nearness: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it does."""
        return (abs(self.value) if self.nearness else self.value) <= self.bound

    @classmethod
    def of_ratio(cls, what: str, ratio: Ratio, bound: float) -> "Check":
        """A ratio of at most *bound*, by its middle."""
        return cls(what, ratio.middle, bound, shown(ratio))

    def __str__(self) -> str:
        verdict = "reached" if self.is_met else "**NOT REACHED**"
        target = f"within {self.bound:g} of 0" if self.nearness else f"at most {self.bound:g}"
        return f"- {verdict}: {self.what}: {self.shown or f'{self.value:.3g}'} (target: {target})"


@dataclass(frozen=True)
class Part:
    """What one section has to say."""

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    checks: Sequence[Check] = ()
    notes: Sequence[str] = field(default=())

    def __str__(self) -> str:
        lines = [f"## {self.title}", "", self.text, "", *table(self.columns, self.rows)]
        lines += ["", *map(str, self.checks)] if self.checks else []
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"


def shown(ratio: Ratio) -> str:
    """A ratio with its interval, to the thousandth."""
    return f"{ratio.middle:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def as_ratio(value: dict[str, Any]) -> Ratio:
    """A ratio as it comes back from JSON."""
    return Ratio(**value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a markdown table whose columns also stand in line on a screen."""
    widths = [max(3, *(len(row[i]) for row in (columns, *rows))) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.ljust(width) if not i else cell.rjust(width) for i, (cell, width) in _cells(cells))
        return "| " + " | ".join([first, *others]) + " |"

    def _cells(cells: Sequence[str]) -> Any:
        return enumerate(zip(cells, widths, strict=True))

    rule = (
        "|" + "|".join("-" * (width + 2) if not i else "-" * (width + 1) + ":" for i, width in enumerate(widths)) + "|"
    )
    return [line(columns), rule, *map(line, rows)]


def milliseconds(seconds: float | None) -> str:
    """To three digits, "-" for None."""
    return "-" if seconds is None else f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def markdown(header: dict[str, Any], parts: Sequence[Part]) -> str:
    """The whole report."""
    forward = "compiled" if header.get("compiled") else "**eager**: it could not be compiled, or not to advantage"
    taken = header.get("sections", {})
    commits = sorted({section["commit"] for section in taken.values()})
    busy = {name: section["cores_taken_by_others"] for name, section in taken.items()}
    disturbed = ", ".join(f"{name} {cores:.2f}" for name, cores in busy.items() if cores > NOTABLE)
    text = [
        f"# The engine's step, {header['machine']}",
        "",
        f"{header['date']}, commit {', '.join(commits) or header['commit']}; "
        + ", ".join(f"{name} {value}" for name, value in header["versions"].items())
        + ".",
        "",
        (
            f"{header['options']['target']} with {header['options']['draft']}, bf16, {header['options']['threads']} "
            f"threads on cores {header['cores']}; our target's forward is {forward}. Everything that is compared was "
            "taken in turns (A B B A) in one process; intervals hold 95 % by a bootstrap over turns."
        ),
        "",
        *([f"**Cores that other processes took meanwhile, by section: {disturbed}.**", ""] if disturbed else []),
    ]
    return "\n".join(text) + "\n" + "\n".join(map(str, parts))
