"""A recording of what a policy met: one JSON line for each step, and what is needed to go through it once more.

The lines hold what `SpeculationPolicy` was asked, what it answered and what came of it; never a prompt's or an
answer's tokens. Floats keep all their digits, so that a replay under the same settings chooses the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import (
    BatchState,
    Candidate,
    Choice,
    Decision,
    Proposer,
    RequestOutcome,
    StepFeatures,
    StepOutcome,
    StepSeconds,
)

FORMAT = 1
"""Rises when a reader of older recordings would misunderstand a new one."""
Index = Annotated[int, Meta(ge=0)]


class RecordingError(ValueError):
    """A file is no recording; the message says where and why."""


class Start(Struct, frozen=True, tag="start", tag_field="event"):
    """The first line. `time` is seconds since 1970, and of all later lines seconds since this one was written first;
    `key` is what the policy's models are valid for. The settings hold what was known before the first line."""

    format: int
    version: str
    time: float
    key: str
    settings: PolicySettings


class Applied(Struct, frozen=True, tag="policy", tag_field="event"):
    """Other settings are in force from here on."""

    time: float
    settings: PolicySettings


class Loaded(Struct, frozen=True, tag="load", tag_field="event"):
    """The load report of that time, as an operator would have read it."""

    time: float
    report: LoadReport


class Dropped(Struct, frozen=True, tag="dropped", tag_field="event"):
    """So many lines are missing here: they came faster than the disk took them."""

    time: float
    lines: int


class ChoiceRow(Struct, frozen=True, array_like=True):
    """So many tokens from a proposer for the candidate of that index."""

    candidate: Index
    proposer: Proposer
    num_tokens: int


class OutcomeRow(Struct, frozen=True, array_like=True):
    """What became of a proposal for the candidate of that index."""

    candidate: Index
    proposer: Proposer
    num_drafted: int
    num_accepted: int


class BatchRecord(Struct, frozen=True, omit_defaults=True):
    """A `BatchState`."""

    candidates: tuple[Candidate, ...]
    max_nodes: int
    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    num_prefills: int = 0


class DecisionRecord(Struct, frozen=True, omit_defaults=True):
    """A `Decision`."""

    choices: tuple[ChoiceRow, ...] = ()
    predicted_seconds: float = 0.0
    predicted_tokens: float = 0.0
    baseline_seconds: float = 0.0
    baseline_tokens: float = 0.0
    probe: bool = False
    reason: str = ""


class EngineState(Struct, frozen=True):
    """What ran, waited and filled the cache when the step was committed."""

    running: int
    waiting: int
    kv_cache_usage: float


class Step(Struct, frozen=True, tag="step", tag_field="event", omit_defaults=True):
    """One step: what the policy was asked (None in a warm-up, where it is only told), chose and learned. `ended` are
    requests that were forgotten since the step before."""

    time: float
    features: StepFeatures
    seconds: StepSeconds
    tokens_kept: int
    decision: DecisionRecord
    batch: BatchRecord | None = None
    outcomes: tuple[OutcomeRow, ...] = ()
    ended: tuple[str, ...] = ()
    engine: EngineState | None = None

    def batch_state(self) -> BatchState | None:
        """What the policy was asked, if it was asked."""
        if self.batch is None:
            return None
        batch = self.batch
        return BatchState(
            batch.candidates, batch.prefill_tokens, batch.prefill_context_tokens, batch.num_prefills, batch.max_nodes
        )

    def outcome(self) -> StepOutcome:
        """What the policy was told; raises RecordingError when it speaks of candidates that are not there."""
        rows, chosen = self.batch.candidates if self.batch is not None else (), self.decision
        try:
            decision = Decision(
                {rows[c.candidate].request_id: Choice(c.proposer, c.num_tokens) for c in chosen.choices},
                chosen.predicted_seconds,
                chosen.predicted_tokens,
                chosen.baseline_seconds,
                chosen.baseline_tokens,
                chosen.probe,
                chosen.reason,
            )
            outcomes = tuple(_outcome(rows[o.candidate], o) for o in self.outcomes)
        except IndexError:
            raise RecordingError(f"the step at {self.time:.3f} s names a candidate that it does not have") from None
        return StepOutcome(decision, self.features, self.seconds, outcomes, self.tokens_kept)


Event = Start | Applied | Loaded | Dropped | Step

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def step_of(
    time: float, batch: BatchState | None, outcome: StepOutcome, ended: tuple[str, ...], engine: EngineState | None
) -> Step:
    """The line of a step, from what crossed the policy's seam."""
    index = {c.request_id: i for i, c in enumerate(batch.candidates)} if batch is not None else {}
    return Step(
        time=time,
        features=outcome.features,
        seconds=outcome.seconds,
        tokens_kept=outcome.tokens_kept,
        decision=_decision_record(outcome.decision, index),
        batch=None if batch is None else _batch_record(batch),
        outcomes=tuple(
            [
                OutcomeRow(index[o.request_id], o.proposer, o.num_drafted, o.num_accepted)
                for o in outcome.outcomes
                if o.request_id in index
            ]
        ),
        ended=ended,
        engine=engine,
    )


def encode(event: Event) -> bytes:
    """One line, its end included."""
    return _encoder.encode(event) + b"\n"


def decode(lines: Iterable[bytes], name: str = "the recording") -> Iterator[Event]:
    """The events of *lines*. Raises RecordingError for a line that is none, unless it is the last one: a process may
    have been killed while it wrote. *name* is for messages."""
    number, broken = 0, None
    for number, line in enumerate(lines, 1):
        if broken is not None:
            raise RecordingError(f"{name}, line {number - 1}: {broken}")
        try:
            event: Event = _decoder.decode(line)
        except msgspec.MsgspecError as error:
            broken = error
            if number == 1:
                break
            continue
        if isinstance(event, Start) and event.format != FORMAT:
            raise RecordingError(f"{name} has format {event.format}, but this version reads format {FORMAT}")
        if number == 1 and not isinstance(event, Start):
            raise RecordingError(f"{name} does not begin with a start line")
        yield event
    if number == 0:
        raise RecordingError(f"{name} is empty")
    if number == 1 and broken is not None:
        raise RecordingError(f"{name}, line 1: {broken}")


def _batch_record(batch: BatchState) -> BatchRecord:
    return BatchRecord(
        batch.candidates, batch.max_nodes, batch.prefill_tokens, batch.prefill_context_tokens, batch.num_prefills
    )


def _decision_record(decision: Decision, index: Mapping[str, int]) -> DecisionRecord:
    choices = [ChoiceRow(index[r], c.proposer, c.num_tokens) for r, c in decision.choices.items() if r in index]
    return DecisionRecord(
        tuple(choices),
        decision.predicted_seconds,
        decision.predicted_tokens,
        decision.baseline_seconds,
        decision.baseline_tokens,
        decision.probe,
        decision.reason,
    )


def _outcome(row: Candidate, outcome: OutcomeRow) -> RequestOutcome:
    matched = row.lookup_match_tokens if outcome.proposer == "lookup" else 0
    return RequestOutcome(
        row.request_id, outcome.proposer, row.verifier, outcome.num_drafted, outcome.num_accepted, matched
    )
