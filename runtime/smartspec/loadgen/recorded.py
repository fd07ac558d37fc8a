"""Arrivals that were recorded: when requests came, and how long they were, from whoever wrote it down.

Read are: JSON Lines with `arrival` in seconds, or `timestamp` in milliseconds as Mooncake's traces have it, each with
optional `prompt`, `input_length` and `output_length`; the CSV of Azure's LLM inference traces
(`TIMESTAMP,ContextTokens,GeneratedTokens`); and what `smartspec serve --trace` writes.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from smartspec.config import ConfigError
from smartspec.loadgen.prompts import lines_of
from smartspec.policy.recording import Loaded, RecordingError, decode


@dataclass(frozen=True)
class Arrival:
    """One recorded request: *time* in seconds since the first, and what is known of it."""

    time: float
    prompt: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class _Line(msgspec.Struct):
    """A line of JSON Lines."""

    arrival: float | None = None
    timestamp: float | None = None
    prompt: str | None = None
    input_length: int | None = None
    output_length: int | None = None


def read(file: Path) -> tuple[Arrival, ...]:
    """The arrivals in *file*, in order, the first at 0; raises ConfigError."""
    try:
        lines = lines_of(file)
        if lines and lines[0].lower().startswith("timestamp,"):
            arrivals = list(_csv(lines))
        elif lines and '"event":"start"' in lines[0]:
            arrivals = list(_recording(lines))
        else:
            arrivals = [_json_line(line) for line in lines]
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecordingError, ValueError, KeyError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"trace {file}: {what}") from None
    if not arrivals:
        raise ConfigError(f"trace {file}: no request arrives in it")
    arrivals.sort(key=lambda arrival: arrival.time)
    first = arrivals[0].time
    return tuple(Arrival(a.time - first, a.prompt, a.prompt_tokens, a.output_tokens) for a in arrivals)


def _json_line(line: str) -> Arrival:
    read_line = msgspec.json.decode(line, type=_Line)
    if read_line.arrival is not None:
        time = read_line.arrival
    elif read_line.timestamp is not None:
        time = read_line.timestamp / 1000
    else:
        raise ValueError("each line needs `arrival` in seconds, or `timestamp` in milliseconds")
    return Arrival(time, read_line.prompt, read_line.input_length, read_line.output_length)


def _csv(lines: Sequence[str]) -> Iterable[Arrival]:
    header, *rest = lines
    for row in csv.DictReader(rest, fieldnames=[name.strip().lower() for name in header.split(",")]):
        # Seven digits of a second, as Azure writes them, are one more than Python reads.
        stamp = row["timestamp"].strip()[:26]
        try:
            time = datetime.fromisoformat(stamp).timestamp()
        except ValueError:
            time = float(stamp)
        yield Arrival(time, None, int(row["contexttokens"]), int(row["generatedtokens"]))


def _recording(lines: Iterable[str]) -> Iterable[Arrival]:
    """Load reports count requests: those that came between two of them are spread evenly in between."""
    before: Loaded | None = None
    for event in decode(line.encode() for line in lines):
        if not isinstance(event, Loaded):
            continue
        if before is not None:
            came = max(0, event.report.requests_total - before.report.requests_total)
            shape = event.report.shape
            for number in range(came):
                yield Arrival(
                    before.time + (number + 0.5) / came * (event.time - before.time),
                    None,
                    round(shape.mean_prompt_tokens) or None,
                    round(shape.mean_requested_tokens) or None,
                )
        before = event
