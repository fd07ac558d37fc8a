"""Figures that a long test measured: shown at the end, and kept with the machine's name where a run is published."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smartspec_bench.record import commit_name, machine_name, machine_slug

FOLDER_VARIABLE = "SMARTSPEC_FIGURES"
"""Names the folder of the published file; `make soak` sets it."""

PUBLISHED: list[str] = []
"""What the end of the run shows, passed tests or not."""


@contextmanager
def measured(name: str) -> Iterator[dict[str, Any]]:
    """What a test puts into the dictionary is published as *name* when the test ends, also where it fails: a figure
    that is worse than promised is a figure."""
    # Both are those of the beginning: the tree may change while a long test runs what it has loaded.
    taken = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit_name(),
        "cores": sorted(os.sched_getaffinity(0)),
    }
    figures: dict[str, Any] = {}
    passed = False
    try:
        yield figures
        passed = True
    finally:
        _publish(name, {"passed": passed, **figures}, taken)


def _publish(name: str, figures: dict[str, Any], taken: dict[str, Any]) -> None:
    """Show *figures* in one line, and put them under *name* into the file of this machine if one is wanted, together
    with what they were *taken* from."""
    PUBLISHED.append(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in figures.items()))
    if not (folder := os.environ.get(FOLDER_VARIABLE)):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests that run beside each other share the file
        file = Path(folder) / f"soak-{machine_slug()}.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        kept["machine"] = machine_name()
        kept[name] = {**taken, **figures}
        new = file.with_suffix(".new")
        new.write_text(json.dumps(kept, indent=1) + "\n")
        new.replace(file)
    finally:
        os.close(lock)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
