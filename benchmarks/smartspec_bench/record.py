"""What a benchmark leaves behind, written after every run, so that one that was stopped goes on where it was."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from smartspec_bench.prompts import ROOT


class RecordError(Exception):
    """A file that does not belong to this benchmark with these options."""


class Record:
    """A JSON file: a header, and one run a line.

    A run is a dictionary whose `key` says which it is: mode, load, workload and round as one text.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], runs: Sequence[dict[str, Any]] = ()) -> None:
        self.path, self.header, self.runs = path, dict(header), list(runs)

    @classmethod
    def open(
        cls, path: Path, name: str, options: Mapping[str, Any], versions: Mapping[str, str], *, fresh: bool
    ) -> "Record":
        """The record at *path* with the runs that are already in it, unless *fresh*; raises RecordError where it was
        taken with other options or other versions: their numbers must not be mixed."""
        header = {
            "benchmark": name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine_name(),
            "cores": sorted(os.sched_getaffinity(0)),
            "commit": commit_name(),
            "versions": dict(versions),
            "options": dict(options),
        }
        if fresh or not path.exists():
            return cls(path, header)
        try:
            data = json.loads(path.read_text())
            old, runs = data["header"], data["runs"]
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path} is not a record of a benchmark ({error}); --fresh starts anew") from None
        for field in ("benchmark", "machine", "cores", "versions", "options"):
            if old.get(field) != json.loads(json.dumps(header[field])):
                raise RecordError(f"{path} was taken with other {field}: {old.get(field)}; --fresh starts anew")
        return cls(path, old | {"continued": header["date"]}, runs)

    def has(self, key: str) -> bool:
        """Whether this run is there."""
        return any(run["key"] == key for run in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """Keep a run, on disk at once."""
        self.runs.append(run)
        self.write()

    def note(self, name: str, value: Any) -> None:
        """Put something into the header."""
        self.header[name] = value
        self.write()

    def write(self) -> None:
        """Replace the file as a whole: it is never half a record."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(run) for run in self.runs)
        new = self.path.with_suffix(".new")
        new.write_text(f'{{"header": {json.dumps(self.header, indent=1)},\n"runs": [\n{lines}\n]}}\n')
        new.replace(self.path)


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """Of Python and *distributions*, as installed here."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine_name() -> str:
    """Processor and cores of this machine."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = models[0] if models else model
    return f"{model}, {os.cpu_count()} cores"


def machine_slug() -> str:
    """The same as a part of a file's name, such as `epyc-4-cores`."""
    words = re.sub(r"[^a-z0-9]+", "-", machine_name().lower()).strip("-").split("-")
    return "-".join(word for word in words if word not in ("amd", "intel", "r", "tm", "cpu", "processor"))


def commit_name() -> str:
    """The commit that is checked out; `-dirty` where files differ from it, other than results, which a run writes."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    name = git("describe", "--always")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return f"{name}-dirty" if changed else name
