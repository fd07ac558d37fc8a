"""How speculation went since the start: predicted against measured, by proposer and by k, for `/speculation`."""

from collections import Counter
from typing import Any

from smartspec.scheduling.output import StepStats


class SpeculationTotals:
    """Sums over all steps of an engine's life. Owned by one thread."""

    def __init__(self) -> None:
        self._steps = self._probes = self._catchup_tokens = 0
        self._seconds = {"draft": 0.0, "target": 0.0, "host": 0.0}
        self._predicted_seconds = self._predicted_tokens = 0.0
        self._foretold_seconds = 0.0
        self._tokens_kept = 0
        self._drafted: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._k: dict[str, Counter[int]] = {}

    def stepped(self, stats: StepStats) -> None:
        """The engine made a step."""
        decision, seconds = stats.decision, stats.seconds
        self._steps += 1
        self._probes += decision.probe
        self._catchup_tokens += stats.catchup_tokens
        self._tokens_kept += stats.tokens_kept
        for part in self._seconds:
            self._seconds[part] += getattr(seconds, part)
        if decision.predicted_seconds > 0:
            self._predicted_seconds += decision.predicted_seconds
            self._predicted_tokens += decision.predicted_tokens
            self._foretold_seconds += seconds.total
        self._drafted.update(stats.drafted_by_proposer)
        self._accepted.update(stats.accepted_by_proposer)
        for proposer, k in stats.k_by_request:
            self._k.setdefault(proposer, Counter())[k] += 1

    def report(self) -> dict[str, Any]:
        """JSON-ready; seconds and tokens. `time_bias` is predicted / measured - 1 over steps with a prediction: what
        is left of the errors when they are summed. `k_by_proposer[p][k]` counts decoding requests and steps."""
        measured = sum(self._seconds.values())
        return {
            "steps": self._steps,
            "probes": self._probes,
            "tokens_kept": self._tokens_kept,
            "predicted_tokens": self._predicted_tokens,
            "seconds": {**self._seconds, "total": measured},
            "predicted_seconds": self._predicted_seconds,
            "time_bias": _ratio(self._predicted_seconds, self._foretold_seconds, 1.0) - 1.0,
            "measured_goodput": _ratio(self._tokens_kept, measured),
            "predicted_goodput": _ratio(self._predicted_tokens, self._predicted_seconds),
            "catchup_tokens": self._catchup_tokens,
            "proposers": {
                proposer: {
                    "draft_tokens": drafted,
                    "accepted_tokens": self._accepted[proposer],
                    "wasted_tokens": drafted - self._accepted[proposer],
                    "acceptance_rate": _ratio(self._accepted[proposer], drafted),
                }
                for proposer, drafted in sorted(self._drafted.items())
            },
            "k_by_proposer": {
                proposer: {str(k): count for k, count in sorted(counts.items())}
                for proposer, counts in sorted(self._k.items())
            },
        }


def _ratio(part: float, whole: float, otherwise: float = 0.0) -> float:
    return part / whole if whole else otherwise
