"""`smartspec replay FILE`: what other settings would have chosen in a recorded run, as a table or as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from smartspec.config import ConfigError
from smartspec.policy import replay
from smartspec.policy.recording import RecordingError, Start, decode
from smartspec.policy.replay import Summary
from smartspec.policy.settings import PolicySettings

HEAD = (
    "requests   steps   k then   k now   same   measured   predicted   error   over plain\n"
    "                                                tok/s       tok/s"
)


@dataclass(frozen=True)
class ReplayReport:
    """One recording replayed: the settings it began with, those put in their place, and sums by requests in a step."""

    key: str
    recorded: PolicySettings
    replayed: PolicySettings
    by_requests: dict[int, Summary]

    @property
    def total(self) -> Summary:
        """The whole recording."""
        return replay.total(self.by_requests.values())

    def as_json(self) -> bytes:
        """For machines: names as in the table, seconds and tokens throughout."""
        return msgspec.json.encode(
            {
                "key": self.key,
                "recorded": _named(self.recorded),
                "replayed": _named(self.replayed),
                "by_requests": {str(bound): _row(part) for bound, part in self.by_requests.items()},
                "total": _row(self.total),
            }
        )

    def as_table(self) -> str:
        """For people."""
        lines = [
            f"{self.key}",
            f"then: {_words(self.recorded)}",
            f"now:  {_words(self.replayed)}",
            "",
            HEAD,
            *(_line(_range(bound), part) for bound, part in self.by_requests.items()),
            _line("all", self.total),
            "",
            "same: steps with the same choice as then; error: |predicted - measured| / measured over those;",
            "over plain: goodput that the choices now promise, against plain decoding of the same batches.",
        ]
        return "\n".join(lines)


def replayed(path: Path, changes: Mapping[str, Any]) -> ReplayReport:
    """Replay the recording in *path* with *changes* to its settings; raises ConfigError when it cannot be read."""

    def change(settings: PolicySettings) -> PolicySettings:
        return msgspec.structs.replace(settings, **changes)

    try:
        with path.open("rb") as lines:
            events = decode(lines, str(path))
            start = next(events)
            assert isinstance(start, Start)  # `decode` yields nothing else first
            steps = replay.replay((event for part in ([start], events) for event in part), change)
            by_requests = replay.summarise(steps)
    except (OSError, RecordingError) as error:
        raise ConfigError(str(error)) from None
    if not by_requests:
        raise ConfigError(f"{path}: nobody decoded in it")
    return ReplayReport(start.key, start.settings, change(start.settings), by_requests)


def _named(settings: PolicySettings) -> dict[str, Any]:
    return {
        "policy": settings.policy,
        "max_speculative_tokens": settings.max_speculative_tokens,
        "tpot_target_seconds": settings.tpot_target_seconds,
    }


def _words(settings: PolicySettings) -> str:
    target = "" if settings.tpot_target_seconds is None else f", TPOT at most {settings.tpot_target_seconds:g} s"
    return f"policy {settings.policy}, at most {settings.max_speculative_tokens} tokens{target}"


def _row(part: Summary) -> dict[str, float]:
    return {
        "steps": part.steps,
        "requests": part.requests,
        "recorded_k": part.recorded_k,
        "replayed_k": part.replayed_k,
        "same_choice": part.same / part.steps,
        "measured_goodput": part.measured_goodput,
        "predicted_goodput": part.predicted_goodput,
        "time_error": part.mean_error,
        "predicted_gain": part.predicted_gain,
    }


def _range(bound: int) -> str:
    return "1" if bound == 1 else f"{bound}-{2 * bound - 1}"


def _line(name: str, part: Summary) -> str:
    same = part.same / part.steps
    error = f"{part.mean_error:.1%}" if part.same else "-"
    return (
        f"{name:>8} {part.steps:7d} {part.recorded_k:8.2f} {part.replayed_k:7.2f} {same:6.0%} "
        f"{part.measured_goodput:10.1f} {part.predicted_goodput:11.1f} {error:>7} {part.predicted_gain:+12.1%}"
    )
