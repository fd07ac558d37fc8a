"""Figures that a long test measured: shown at the end, and kept with the machine's name where a run is published."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smartspec_bench.record import machine_name, machine_slug

FOLDER_VARIABLE = "SMARTSPEC_FIGURES"
"""Names the folder of the published file; `make soak` sets it."""

PUBLISHED: list[str] = []
"""What the end of the run shows, passed tests or not."""


def publish(name: str, **figures: Any) -> None:
    """Show *figures* in one line, and put them under *name* into the file of this machine if one is wanted."""
    PUBLISHED.append(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in figures.items()))
    if not (folder := os.environ.get(FOLDER_VARIABLE)):
        return
    file = Path(folder) / f"soak-{machine_slug()}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept["machine"] = machine_name()
    kept[name] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **figures}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(kept, indent=1) + "\n")
    new.replace(file)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
