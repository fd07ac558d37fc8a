"""What a simulation leaves behind: its steps, its requests, and what can be read off them."""

from dataclasses import dataclass, field

import numpy as np

from smartspec.policy.types import Decision, StepFeatures, StepSeconds
from smartspec.policy.worlds import Arrival


@dataclass(frozen=True)
class StepRecord:
    """One simulated step: when it ended, what was chosen, what it took (`quiet_seconds`: but for noise) and brought."""

    time: float
    decision: Decision
    features: StepFeatures
    seconds: StepSeconds
    quiet_seconds: float
    tokens_kept: int
    num_running: int
    num_waiting: int
    num_drafted: int

    @property
    def mean_k(self) -> float:
        """Speculative tokens per decoding request."""
        return self.num_drafted / self.decision.baseline_tokens if self.decision.baseline_tokens else 0.0


@dataclass(frozen=True)
class Finished:
    """One request's life in seconds since the replica's clock began."""

    arrival: Arrival
    first_token_time: float
    finish_time: float

    @property
    def ttft(self) -> float:
        """Seconds from arrival to the first token."""
        return self.first_token_time - self.arrival.time

    @property
    def latency(self) -> float:
        """Seconds from arrival to the last token."""
        return self.finish_time - self.arrival.time

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first."""
        return (self.finish_time - self.first_token_time) / max(1, self.arrival.output_tokens - 1)


@dataclass
class Trace:
    """Everything that happened in one simulation."""

    steps: list[StepRecord] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)

    def between(self, start: float, end: float) -> "Trace":
        """The part of it whose steps and requests ended in [start, end)."""
        return Trace(
            [s for s in self.steps if start <= s.time < end],
            [f for f in self.finished if start <= f.finish_time < end],
        )

    @property
    def tokens_per_second(self) -> float:
        """Tokens kept per second of step time."""
        return sum(s.tokens_kept for s in self.steps) / max(1e-9, sum(s.seconds.total for s in self.steps))

    @property
    def quiet_tokens_per_second(self) -> float:
        """Tokens kept per second of step time with the noise taken out: what policies are compared by."""
        return sum(s.tokens_kept for s in self.steps) / max(1e-9, sum(s.quiet_seconds for s in self.steps))

    @property
    def mean_k(self) -> float:
        """Speculative tokens per decoding request and step."""
        requests = sum(s.decision.baseline_tokens for s in self.steps)
        return sum(s.num_drafted for s in self.steps) / requests if requests else 0.0

    @property
    def time_error(self) -> float:
        """Mean of |predicted - measured| / measured over steps."""
        errors = [abs(s.decision.predicted_seconds / s.seconds.total - 1.0) for s in self.steps]
        return float(np.mean(errors)) if errors else 0.0

    @property
    def mean_latency(self) -> float:
        """Mean seconds from arrival to the last token."""
        return float(np.mean([f.latency for f in self.finished]))

    def attainment(self, tpot_seconds: float) -> float:
        """The share of finished requests whose TPOT kept the bound."""
        return float(np.mean([f.tpot <= tpot_seconds for f in self.finished]))
