"""A recorded run once more, through another policy: what it would have chosen at every step, and predicted.

The batches are those that came, and what the policy learns is what really happened: under other settings it would
have met other batches and seen other proposals verified. So a replay tells what settings would have *decided*, and
what the decisions promise; what they would have brought, only a run can tell. It cannot choose what was not offered
then: a server started without a draft has recorded none, and one whose policy was off, or rested, no copies.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.recording import Applied, Event, RecordingError, Start, Step
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Decision, Limits


@dataclass(frozen=True, slots=True)
class ReplayedStep:
    """One step in which somebody decoded: what was chosen then and what is chosen now, and what came of the former."""

    time: float
    num_requests: int
    recorded: Decision
    replayed: Decision
    limits: Limits
    measured_seconds: float
    tokens_kept: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums over some replayed steps. Predictions are compared with what was measured only where the choice was the
    same: of another choice nobody knows what it would have taken."""

    steps: int = 0
    requests: int = 0
    recorded_tokens: int = 0
    replayed_tokens: int = 0
    same: int = 0
    measured_seconds: float = 0.0
    tokens_kept: int = 0
    predicted_seconds: float = 0.0
    predicted_tokens: float = 0.0
    plain_seconds: float = 0.0
    error: float = 0.0

    @property
    def recorded_k(self) -> float:
        """Mean speculative tokens per request and step, as recorded."""
        return self.recorded_tokens / self.requests if self.requests else 0.0

    @property
    def replayed_k(self) -> float:
        """The same, as chosen now."""
        return self.replayed_tokens / self.requests if self.requests else 0.0

    @property
    def measured_goodput(self) -> float:
        """Tokens kept per second of step time, as recorded."""
        return self.tokens_kept / self.measured_seconds if self.measured_seconds else 0.0

    @property
    def predicted_goodput(self) -> float:
        """Tokens kept per second that the choices made now promise."""
        return self.predicted_tokens / self.predicted_seconds if self.predicted_seconds else 0.0

    @property
    def predicted_gain(self) -> float:
        """How much more goodput they promise than plain decoding, as a share."""
        if not (self.requests and self.predicted_seconds):
            return 0.0
        return self.predicted_goodput * self.plain_seconds / self.requests - 1.0

    @property
    def mean_error(self) -> float:
        """Mean of |predicted - measured| / measured over steps with the same choice."""
        return self.error / self.same if self.same else 0.0


def replay(
    events: Iterable[Event], change: Callable[[PolicySettings], PolicySettings] = lambda settings: settings
) -> Iterator[ReplayedStep]:
    """Go through *events* with the recorded settings, each changed by *change* before it is applied.

    Without a change, the choices are the recorded ones, as long as nothing is missing from the recording's beginning.
    Raises RecordingError when there is no start line.
    """
    policy: SpeculationPolicy | None = None
    for event in events:
        if isinstance(event, Start):
            policy = SpeculationPolicy(change(event.settings), key=event.key)
        elif policy is None:
            raise RecordingError("the recording does not begin with a start line")
        elif isinstance(event, Applied):
            policy.apply(change(event.settings))
        elif isinstance(event, Step):
            replayed = _step(policy, event)
            if replayed is not None:
                yield replayed


def summarise(steps: Iterable[ReplayedStep]) -> dict[int, Summary]:
    """Sums by the number of decoding requests, in classes 1, 2-3, 4-7 and so on, each under its lower bound."""
    found: dict[int, Summary] = {}
    for step in steps:
        bound = 1 << (step.num_requests.bit_length() - 1)
        found[bound] = _add(found.get(bound, Summary()), step)
    return dict(sorted(found.items()))


def total(parts: Iterable[Summary]) -> Summary:
    """The sum of *parts*."""
    whole = Summary()
    for part in parts:
        whole = Summary(*(getattr(whole, name) + getattr(part, name) for name in Summary.__slots__))
    return whole


def _step(policy: SpeculationPolicy, step: Step) -> ReplayedStep | None:
    for request_id in step.ended:
        policy.forget(request_id)
    batch, outcome = step.batch_state(), step.outcome()
    if batch is None:
        policy.observe(outcome)
        return None
    limits = policy.limits(batch)
    decision = policy.decide(batch)
    policy.observe(outcome)
    if not batch.candidates:
        return None
    return ReplayedStep(
        time=step.time,
        num_requests=len(batch.candidates),
        recorded=outcome.decision,
        replayed=decision,
        limits=limits,
        measured_seconds=step.seconds.total,
        tokens_kept=step.tokens_kept,
    )


def _add(sums: Summary, step: ReplayedStep) -> Summary:
    recorded, replayed = step.recorded, step.replayed
    same = recorded.choices == replayed.choices
    error = abs(replayed.predicted_seconds - step.measured_seconds) / max(step.measured_seconds, 1e-9)
    return Summary(
        steps=sums.steps + 1,
        requests=sums.requests + step.num_requests,
        recorded_tokens=sums.recorded_tokens + sum(c.num_tokens for c in recorded.choices.values()),
        replayed_tokens=sums.replayed_tokens + sum(c.num_tokens for c in replayed.choices.values()),
        same=sums.same + same,
        measured_seconds=sums.measured_seconds + step.measured_seconds,
        tokens_kept=sums.tokens_kept + step.tokens_kept,
        predicted_seconds=sums.predicted_seconds + replayed.predicted_seconds,
        predicted_tokens=sums.predicted_tokens + replayed.predicted_tokens,
        plain_seconds=sums.plain_seconds + replayed.baseline_seconds,
        error=sums.error + (error if same else 0.0),
    )
