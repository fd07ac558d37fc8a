"""What crosses the policy's seam: what it is told before a step, what it answers, what it learns afterwards.

What there is one of for each request and step is a msgspec Struct: made in a tenth of a frozen dataclass's time, and
read by the hundred in another tenth where it is `array_like` (see `columns.py`).
"""

from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

Proposer = Literal["draft", "lookup"]
Verifier = Literal["coupled", "rejection", "greedy"]
SpeculationMode = Literal["auto", "off", "fixed"]


class Candidate(Struct, frozen=True, gc=False, array_like=True):
    """One running request that will decode in the coming step, as the policy sees it.

    `max_speculative_tokens` is the room left by max_tokens, max_model_len, the free blocks and the request's own wish.
    `draft_lag_tokens` is how many committed tokens the draft model must be fed before it can draft (1 or 2 when it
    drafted last step); `None` means that this request cannot use a draft model. `lookup_tokens` tokens stand ready to
    be copied by prompt lookup after a match of `lookup_match_tokens` tokens (0: no match).
    """

    request_id: str
    context_tokens: int
    max_speculative_tokens: int
    verifier: Verifier
    mode: SpeculationMode = "auto"
    draft_lag_tokens: int | None = None
    lookup_tokens: int = 0
    lookup_match_tokens: int = 0


@dataclass(frozen=True, slots=True)
class BatchState:
    """The coming step before speculation is decided.

    `prefill_tokens` are already scheduled in the same step, attending to `prefill_context_tokens` in sum.
    `max_nodes` bounds the sum of speculative nodes over all requests (what the token budget of the step leaves).
    """

    candidates: tuple[Candidate, ...]
    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    num_prefills: int = 0
    max_nodes: int = 1 << 30


class Choice(Struct, frozen=True, gc=False):
    """`num_tokens` nodes for one request from one proposer; 0 tokens is written as no choice at all."""

    proposer: Proposer
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to speculate in the coming step, and the prediction it rests on.

    Goodput is expected tokens kept per second of predicted step time (source: arXiv 2406.14066, section 4).
    `baseline_*` is the same step without speculation. `reason` is one short phrase for people.
    """

    choices: dict[str, Choice] = field(default_factory=dict)
    predicted_seconds: float = 0.0
    predicted_tokens: float = 0.0
    baseline_seconds: float = 0.0
    baseline_tokens: float = 0.0
    probe: bool = False
    reason: str = ""

    @property
    def predicted_goodput(self) -> float:
        """Tokens kept per second, or 0 when nothing is predicted."""
        return self.predicted_tokens / self.predicted_seconds if self.predicted_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class StepFeatures:
    """What a step consisted of: the regressors of the time model. Counts, never seconds."""

    target_tokens: int
    context_tokens: int
    num_requests: int
    prefill_tokens: int = 0
    draft_batch_by_depth: tuple[int, ...] = ()
    draft_context_tokens: int = 0
    catchup_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """How long the parts of a step took. `host` is everything in the step that is neither draft nor target."""

    draft: float
    target: float
    host: float

    @property
    def total(self) -> float:
        """The whole step."""
        return self.draft + self.target + self.host


class RequestOutcome(Struct, frozen=True, gc=False, array_like=True):
    """What became of one request's proposal: `num_accepted` of `num_drafted` positions, the rest after the first
    rejection censored."""

    request_id: str
    proposer: Proposer
    verifier: Verifier
    num_drafted: int
    num_accepted: int
    lookup_match_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Prediction against measurement: what the policy learns from."""

    decision: Decision
    features: StepFeatures
    seconds: StepSeconds
    outcomes: tuple[RequestOutcome, ...]
    tokens_kept: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What keeps the time per output token within its target: ceilings the scheduler honours, None where it is free.

    `max_running_requests` is at least 1 and `max_prefill_tokens` at least one small chunk: a limit slows, never stops.
    """

    max_running_requests: int | None = None
    max_prefill_tokens: int | None = None
