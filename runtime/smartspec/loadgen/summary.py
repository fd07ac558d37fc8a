"""Samples summed up: percentiles, rates, errors by kind, and modes against each other."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartspec.loadgen.client import Sample
from smartspec.loadgen.counters import GENERATED, Speculation
from smartspec.loadgen.estimates import Ratio, ratio
from smartspec.loadgen.run import Run

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Spread:
    """Of some times in seconds: their mean, and percentiles by `PERCENTILES`."""

    mean: float
    percentiles: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None when there are no values."""
        known = np.fromiter(values, dtype=float)
        if not len(known):
            return None
        return cls(float(known.mean()), tuple(float(value) for value in np.percentile(known, PERCENTILES)))

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentiles[0]

    def as_json(self) -> dict[str, float]:
        """By name, in seconds."""
        names = (f"p{percentile}" for percentile in PERCENTILES)
        return {"mean": self.mean, **dict(zip(names, self.percentiles, strict=True))}


@dataclass(frozen=True)
class Summary:
    """What one mode brought over all its rounds. Times in seconds; rates per second in which something was asked."""

    mode: str
    rounds: tuple[Run, ...]

    @property
    def samples(self) -> list[Sample]:
        """Of all rounds."""
        return [sample for run in self.rounds for sample in run.samples]

    @property
    def answered(self) -> list[Sample]:
        """Those that were answered whole."""
        return [sample for sample in self.samples if not sample.error]

    @property
    def seconds(self) -> float:
        """All rounds together."""
        return sum(run.seconds for run in self.rounds)

    @property
    def errors(self) -> Counter[str]:
        """How many failures there were of each kind."""
        return Counter(sample.error for sample in self.samples if sample.error)

    @property
    def tokens(self) -> int:
        """Output tokens of the requests that were answered."""
        return sum(sample.tokens for sample in self.answered)

    @property
    def tokens_per_second(self) -> float:
        """Output tokens."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def requests_per_second(self) -> float:
        """Requests answered."""
        return len(self.answered) / self.seconds if self.seconds else 0.0

    @property
    def times(self) -> dict[str, Spread | None]:
        """The four latencies, by the names people know them by."""
        answered = self.answered
        return {
            "ttft": Spread.of(sample.ttft for sample in answered if sample.ttft is not None),
            "itl": Spread.of(gap for sample in answered for gap in sample.gaps),
            "tpot": Spread.of(tpot for sample in answered if (tpot := sample.tpot) is not None),
            "e2e": Spread.of(sample.latency for sample in answered),
        }

    @property
    def lateness(self) -> float:
        """The 95th percentile of how late requests were sent: above some hundredths, the generator is the limit."""
        return float(np.percentile([sample.late for sample in self.samples], 95)) if self.samples else 0.0

    @property
    def counted(self) -> dict[str, float] | None:
        """What the server counted in all rounds; None where one of them told nothing."""
        total: dict[str, float] = {}
        for run in self.rounds:
            if run.counted is None:
                return None
            for name, value in run.counted.items():
                total[name] = total.get(name, 0.0) + value
        return total

    @property
    def speculation(self) -> Speculation | None:
        """What became of proposals; None where the server tells nothing of them."""
        counted = self.counted
        return None if counted is None else Speculation.of(counted)

    @property
    def share_of_others(self) -> float:
        """Of the tokens that the server counted, the share that others than we asked for."""
        generated = (self.counted or {}).get(GENERATED, 0.0)
        return max(0.0, 1.0 - self.tokens / generated) if generated else 0.0

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, samples included."""
        speculation = self.speculation
        return {
            "mode": self.mode,
            "requests": len(self.samples),
            "answered": len(self.answered),
            "errors": dict(self.errors),
            "seconds": self.seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "requests_per_second": self.requests_per_second,
            **{name: None if spread is None else spread.as_json() for name, spread in self.times.items()},
            "lateness_p95": self.lateness,
            "speculation": None
            if speculation is None
            else {
                "drafts": speculation.drafts,
                "draft_tokens": speculation.drafted,
                "accepted_tokens": speculation.accepted,
                "accepted_by_position": list(speculation.accepted_by_position),
                "acceptance_rate": speculation.acceptance_rate,
                "mean_acceptance_length": speculation.mean_acceptance_length,
            },
            "rounds": [
                {
                    "seconds": run.seconds,
                    "cut_off": run.num_cut_off,
                    "counted": run.counted,
                    "samples": [_sample(sample) for sample in run.samples],
                }
                for run in self.rounds
            ],
        }


def _sample(sample: Sample) -> dict[str, Any]:
    kept: dict[str, Any] = {
        "number": sample.number,
        "due": sample.due,
        "late": sample.late,
        "ttft": sample.ttft,
        "latency": sample.latency,
        "prompt_tokens": sample.prompt_tokens,
        "tokens": sample.tokens,
    }
    return kept | ({"error": sample.error, "detail": sample.detail} if sample.error else {"gaps": sample.gaps})


def against(mode: Summary, first: Summary) -> Ratio | None:
    """Mean end-to-end latency of *mode* over that of *first*, paired by request and round; None without any pair."""
    above: list[list[float]] = []
    below: list[list[float]] = []
    for mine, theirs in zip(mode.rounds, first.rounds, strict=False):
        pairs = _pairs(mine.samples, theirs.samples)
        if pairs:
            above.append([pair[0] for pair in pairs])
            below.append([pair[1] for pair in pairs])
    return ratio(above, below) if above else None


def _pairs(mine: Sequence[Sample], theirs: Sequence[Sample]) -> list[tuple[float, float]]:
    latencies: Mapping[int, float] = {sample.number: sample.latency for sample in theirs if not sample.error}
    return [
        (sample.latency, latencies[sample.number]) for sample in mine if not sample.error and sample.number in latencies
    ]
