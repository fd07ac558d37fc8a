"""Figures of the long tests: with the machine, the day and the commit, and not only where all went well."""

import json
from pathlib import Path

import pytest

import figures
from figures import FOLDER_VARIABLE, measured


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "results"))
    monkeypatch.setattr(figures, "PUBLISHED", [])


def test_a_failing_measurement_is_published(tmp_path: Path) -> None:
    """What was put in before the failure is in the file, and that it failed; the failure itself goes on."""

    def fail() -> None:
        with measured("overload") as found:
            found["share_of_peak"] = 0.4
            raise AssertionError("too slow")

    with pytest.raises(AssertionError, match="too slow"):
        fail()
    [file] = (tmp_path / "results").iterdir()
    kept = json.loads(file.read_text())
    assert kept["machine"]
    assert kept["overload"].items() >= {"passed": False, "share_of_peak": 0.4}.items()
    assert kept["overload"].keys() >= {"date", "commit"}
    assert figures.PUBLISHED == ["overload: passed False, share_of_peak 0.4"]


def test_measurements_share_a_file(tmp_path: Path) -> None:
    """Each replaces its own figures and leaves those of the others."""
    for name, value in (("soak", 1), ("abuse", 2), ("soak", 3)):
        with measured(name) as found:
            found["value"] = value
    [file] = (tmp_path / "results").iterdir()
    kept = json.loads(file.read_text())
    assert [(name, kept[name]["value"], kept[name]["passed"]) for name in ("soak", "abuse")] == [
        ("soak", 3, True), ("abuse", 2, True)
    ]  # fmt: skip
