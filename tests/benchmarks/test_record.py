"""A benchmark that was stopped goes on where it was, and numbers of different circumstances are not mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smartspec_bench.record import Record, RecordError
from smartspec_bench.session import Budget

OPTIONS = {"tokens": 8}
VERSIONS = {"torch": "1"}


def _open(path: Path, *, options: dict = OPTIONS, versions: dict = VERSIONS, fresh: bool = False) -> Record:
    return Record.open(path, "paper", options, versions, fresh=fresh)


def test_goes_on(tmp_path: Path) -> None:
    """Every run is on disk as soon as it is added, one a line, and is there when the record is opened again."""
    path = tmp_path / "paper.json"
    record = _open(path)
    record.add({"key": "off 1", "latencies": [0.5]})
    record.add({"key": "off 2", "latencies": [0.6]})
    again = _open(path)
    assert again.has("off 2")
    assert not again.has("off 3")
    assert again.header["date"] == record.header["date"]
    assert sum(line.startswith('{"key"') for line in path.read_text().splitlines()) == 2
    assert json.loads(path.read_text())["runs"][0]["latencies"] == [0.5]


@pytest.mark.parametrize("changed", [{"options": {"tokens": 9}}, {"versions": {"torch": "2"}}])
def test_other_circumstances_are_refused(tmp_path: Path, changed: dict) -> None:
    """A record with other options or versions is named and left alone, unless asked to start anew."""
    path = tmp_path / "paper.json"
    _open(path).add({"key": "off 1"})
    with pytest.raises(RecordError, match=next(iter(changed))):
        _open(path, **changed)
    assert not _open(path, **changed, fresh=True).runs


def test_not_a_record(tmp_path: Path) -> None:
    """A file of another kind is refused, not overwritten."""
    path = tmp_path / "paper.json"
    path.write_text("[]")
    with pytest.raises(RecordError, match="--fresh"):
        _open(path)
    assert path.read_text() == "[]"


def test_budget_learns() -> None:
    """A block that would not end in time is not begun: by its guess first, then by what the last one took."""
    now = 0.0
    budget = Budget(1.0, clock=lambda: now)
    assert budget.allows("grid", guess=60.0)
    assert not budget.allows("grid", guess=61.0)
    budget.took("grid", 20.0)
    now = 40.0
    assert budget.allows("grid", guess=61.0)
    now = 41.0
    assert not budget.allows("grid", guess=1.0)
