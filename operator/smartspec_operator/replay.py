"""`smartspec-operator replay FILE TRACE...`: what tuning and scaling would have decided from recorded load reports.

Each trace (`smartspec serve --trace`) is one replica, there from its first report to its last. The decisions are the
operator's own, over the fleet as it was recorded: nothing they decide comes true, so each answers for its own moment,
with the past of recommendations that windows need.
"""

import argparse
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from smartspec.policy.load import LoadReport
from smartspec.policy.recording import Event, Loaded, RecordingError, Start, decode
from smartspec_operator import scaling, tuning
from smartspec_operator.local_file import FileError, ResourceFile
from smartspec_operator.resource import InvalidSpecError, SmartSpec, parse
from smartspec_operator.rules import violations
from smartspec_operator.world import History, Observation, Pod, PolicyDecision, Replica, ScalingDecision, Timing

SILENT_SECONDS = 10.0
"""A replica that has reported nothing for so long had ended, or its trace had."""


@dataclass(frozen=True)
class Recorded:
    """One replica's reports, by the time they were made."""

    name: str
    reports: tuple[tuple[datetime, LoadReport], ...]

    def at(self, now: datetime) -> LoadReport | None:
        """What it had reported last by *now*; None before the first report, and long after the last."""
        index = bisect_right(self.reports, now, key=lambda report: report[0]) - 1
        if index < 0 or now - self.reports[index][0] > timedelta(seconds=SILENT_SECONDS):
            return None
        return self.reports[index][1]


@dataclass(frozen=True)
class Decided:
    """What both stages would have decided at one moment, of so many replicas."""

    time: datetime
    replicas: int
    policy: PolicyDecision
    scale: ScalingDecision


def recorded(name: str, events: Iterable[Event]) -> Recorded:
    """The load reports among *events*; raises RecordingError when there are none."""
    reports: list[tuple[datetime, LoadReport]] = []
    began = datetime.fromtimestamp(0.0, UTC)
    for event in events:
        if isinstance(event, Start):
            began = datetime.fromtimestamp(event.time, UTC)
        elif isinstance(event, Loaded):
            reports.append((began + timedelta(seconds=event.time), event.report))
    if not reports:
        raise RecordingError(f"{name} holds no load report")
    return Recorded(name, tuple(reports))


def replay(owner: SmartSpec, replicas: Sequence[Recorded], timing: Timing) -> Iterator[Decided]:
    """Both stages' decisions for *owner*, each time tuning would have run; scaling keeps its own, slower time."""
    now = min(replica.reports[0][0] for replica in replicas)
    end = max(replica.reports[-1][0] for replica in replicas)
    history, scaled, scale = History(), now, None
    while now <= end:
        seen = _observation(replicas, now, history)
        policy = tuning.decide(owner, seen, history, now=now)
        if scale is None or now - scaled >= timedelta(seconds=timing.scaling_seconds):
            scale, scaled = scaling.decide(owner, seen, history, policy, now=now, timing=timing), now
        yield Decided(now, len(seen.replicas), policy, scale)
        # The records are left out: what was decided then has not come true, and the next decision starts from what was.
        history = History(settings=policy.settings, tuning=policy.state, recommendations=scale.recommendations)
        now += timedelta(seconds=timing.tuning_seconds)


def _observation(replicas: Sequence[Recorded], now: datetime, history: History) -> Observation:
    """The fleet at *now*, as if it had taken every policy that was decided."""
    generation = history.settings.generation if history.settings is not None else 0
    found = [
        Replica(
            Pod(replica.name, since=replica.reports[0][0], ready=load.state == "ready"),
            load=msgspec.structs.replace(load, generation=generation),
        )
        for replica in replicas
        if (load := replica.at(now)) is not None
    ]
    return Observation(replicas=tuple(found), deployed_replicas=len(found), history=history)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("file", type=Path, metavar="FILE", help="manifest of the SmartSpec to decide for")
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE", help="what each replica has recorded")


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each decision that differs from the one before; 2 when the input makes no sense."""
    try:
        owner = parse(ResourceFile(arguments.file).read().resource)
        if broken := violations(owner.name, owner.spec):
            raise InvalidSpecError("; ".join(broken))
        replicas = [_read(path) for path in arguments.traces]
    except (OSError, FileError, InvalidSpecError, RecordingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    before: tuple[object, ...] = ()
    for decided in replay(owner, replicas, Timing()):
        settings, scale = decided.policy.settings, decided.scale
        now = (settings.generation, decided.replicas, scale.desired, scale.reason)
        if now != before:
            before = now
            print(
                f"{decided.time:%H:%M:%S}  replicas {decided.replicas} -> {scale.desired}  {scale.reason}: "
                f"{scale.message}; policy {settings.generation} {settings.reason}"
            )
    return 0


def _read(path: Path) -> Recorded:
    with path.open("rb") as lines:
        return recorded(str(path), decode(lines, str(path)))
