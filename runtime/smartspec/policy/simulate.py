"""A step simulator: the real `SpeculationPolicy` against a world of our making, on a clock of our making.

`Replica` does what an engine does with a policy, step by step, and moves its own clock by what the steps took; a
driver (`run_closed`, `run_open`, or an operator's test with many replicas) decides what arrives.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.trace import Finished, StepRecord, Trace
from smartspec.policy.types import (
    BatchState,
    Candidate,
    Choice,
    Decision,
    RequestOutcome,
    StepFeatures,
    StepOutcome,
)
from smartspec.policy.worlds import Arrival, Device, Shape, Text, Texts

__all__ = ["Finished", "Replica", "StepRecord", "Trace", "run_closed", "run_open"]

LOOKUP_TOKENS = 8
"""Tokens that prompt lookup offers after a match."""


@dataclass
class _Running:
    text: Text
    prefilled: int = 0
    produced: int = 0
    draft_length: int = 0
    first_token_time: float = 0.0

    @property
    def length(self) -> int:
        return self.text.arrival.prompt_tokens + self.produced


class Replica:
    """One engine: admits, prefills in chunks, decodes, and asks and tells its *policy*."""

    def __init__(
        self,
        policy: SpeculationPolicy,
        device: Device,
        texts: Texts,
        *,
        seed: int,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        has_draft: bool = True,
    ) -> None:
        self.policy = policy
        self.now = 0.0
        self.trace = Trace()
        self.waiting: deque[Arrival] = deque()
        self.running: list[_Running] = []
        self._device = device
        self._texts = texts
        self._random = np.random.default_rng(seed)
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._has_draft = has_draft

    @property
    def num_requests(self) -> int:
        """Requests running or waiting."""
        return len(self.running) + len(self.waiting)

    def submit(self, arrival: Arrival) -> None:
        """Queue a request."""
        self.waiting.append(arrival)

    def warm_up(self) -> None:
        """Run steps of all sizes, with and without a draft, before the first request, as an engine does."""
        size = 1
        while size <= self._max_num_batched_tokens:
            for k in (0, 3) if self._has_draft else (0,):
                requests = max(1, min(size // (k + 1), self._max_num_seqs))
                prefill = max(0, size - requests * (k + 1))
                features = StepFeatures(
                    target_tokens=requests * (k + 1) + prefill,
                    context_tokens=16 * requests + prefill,
                    num_requests=requests + bool(prefill),
                    prefill_tokens=prefill,
                    draft_batch_by_depth=(requests,) * k,
                    draft_context_tokens=16 * requests * k,
                    catchup_tokens=requests if k else 0,
                )
                for _ in range(2):
                    seconds, _ = self._device.seconds(features, 16.0 * size, self.now, self._random)
                    self.policy.observe(StepOutcome(Decision(), features, seconds, (), 0))
                    self.now += seconds.total
            size *= 2
        self.now = 0.0

    def step(self) -> StepRecord | None:
        """Run one step and move the clock by what it took; None when there is nothing to do."""
        decoding = [r for r in self.running if r.prefilled >= r.text.arrival.prompt_tokens]
        looks = not self.policy.rests(len(decoding))
        candidates = tuple(self._candidate(r, looks=looks) for r in decoding)
        budget = self._max_num_batched_tokens - len(decoding)
        limits = self.policy.limits(BatchState(candidates, max_nodes=budget))
        bounds = (limits.max_running_requests, self.policy.settings.max_running_requests, self._max_num_seqs)
        max_running = min(b for b in bounds if b is not None)
        while self.waiting and len(self.running) < max_running:
            self.running.append(_Running(Text(self.waiting.popleft(), self._texts)))
        chunks = self._prefill(min(budget, limits.max_prefill_tokens or budget))
        prefill_tokens = sum(size for _, size in chunks)
        if not decoding and not chunks:
            return None
        batch = BatchState(
            candidates,
            prefill_tokens=prefill_tokens,
            prefill_context_tokens=sum(r.prefilled + size for r, size in chunks),
            num_prefills=len(chunks),
            max_nodes=budget - prefill_tokens,
        )
        decision = self.policy.decide(batch)
        features, row_context = self._features(decoding, batch, decision)
        seconds, quiet_seconds = self._device.seconds(features, row_context, self.now, self._random)
        self.now += seconds.total
        outcomes, kept = self._advance(decoding, candidates, decision)
        for request, size in chunks:
            request.prefilled += size
            if request.prefilled >= request.text.arrival.prompt_tokens:
                request.produced, request.first_token_time = 1, self.now
                kept += 1
        self.policy.observe(StepOutcome(decision, features, seconds, tuple(outcomes), kept))
        self._finish()  # only now: the policy must not be told of a request's end before of its last step
        record = StepRecord(
            self.now,
            decision,
            features,
            seconds,
            quiet_seconds,
            kept,
            len(self.running),
            len(self.waiting),
            sum(c.num_tokens for c in decision.choices.values()),
        )
        self.trace.steps.append(record)
        return record

    def _candidate(self, request: _Running, *, looks: bool) -> Candidate:
        match = request.text.match_tokens(request.produced) if looks else 0
        return Candidate(
            request_id=request.text.arrival.request_id,
            context_tokens=request.length,
            max_speculative_tokens=max(0, request.text.arrival.output_tokens - request.produced - 1),
            verifier=self._texts.verifier,
            draft_lag_tokens=request.length - request.draft_length if self._has_draft else None,
            lookup_tokens=LOOKUP_TOKENS if match else 0,
            lookup_match_tokens=match,
        )

    def _prefill(self, budget: int) -> list[tuple[_Running, int]]:
        chunks: list[tuple[_Running, int]] = []
        for request in self.running:
            missing = request.text.arrival.prompt_tokens - request.prefilled
            if missing > 0 and budget > 0:
                chunks.append((request, min(missing, budget)))
                budget -= chunks[-1][1]
        return chunks

    def _features(self, decoding: list[_Running], batch: BatchState, decision: Decision) -> tuple[StepFeatures, float]:
        none = Choice("lookup", 0)
        chosen = [decision.choices.get(r.text.arrival.request_id, none) for r in decoding]
        drafted = [(r, c.num_tokens) for r, c in zip(decoding, chosen, strict=True) if c.proposer == "draft"]
        deepest = max((k for _, k in drafted), default=0)
        num_nodes = sum(c.num_tokens for c in chosen)
        features = StepFeatures(
            target_tokens=len(decoding) + batch.prefill_tokens + num_nodes,
            context_tokens=sum(r.length for r in decoding) + batch.prefill_context_tokens,
            num_requests=len(decoding) + batch.num_prefills,
            prefill_tokens=batch.prefill_tokens,
            draft_batch_by_depth=tuple(sum(k >= d for _, k in drafted) for d in range(1, deepest + 1)),
            draft_context_tokens=sum(r.length * k for r, k in drafted),
            catchup_tokens=sum(r.length - r.draft_length for r, _ in drafted),
        )
        rows = sum(r.length * (c.num_tokens + 1) for r, c in zip(decoding, chosen, strict=True))
        return features, float(rows + batch.prefill_context_tokens)

    def _advance(
        self, decoding: list[_Running], candidates: tuple[Candidate, ...], decision: Decision
    ) -> tuple[list[RequestOutcome], int]:
        outcomes: list[RequestOutcome] = []
        total = 0
        for request, candidate in zip(decoding, candidates, strict=True):
            choice = decision.choices.get(candidate.request_id)
            accepted = 0
            if choice is not None:
                num = choice.num_tokens
                if choice.proposer == "draft":
                    accepted = request.text.accepted_draft(request.produced, num, self.now)
                    request.draft_length = request.length + min(accepted, num - 1)
                else:
                    accepted = request.text.accepted_lookup(request.produced, num)
                outcomes.append(
                    RequestOutcome(
                        candidate.request_id,
                        choice.proposer,
                        candidate.verifier,
                        num,
                        accepted,
                        candidate.lookup_match_tokens if choice.proposer == "lookup" else 0,
                    )
                )
            kept = min(accepted + 1, request.text.arrival.output_tokens - request.produced)
            request.produced += kept
            total += kept
        return outcomes, total

    def _finish(self) -> None:
        for request in self.running:
            arrival = request.text.arrival
            if request.produced >= arrival.output_tokens:
                self.trace.finished.append(Finished(arrival, request.first_token_time, self.now))
                self.policy.forget(arrival.request_id)
        self.running = [r for r in self.running if r.produced < r.text.arrival.output_tokens]


def run_closed(
    replica: Replica, concurrency: Callable[[float], int], until: float, shape: Shape, *, seed: int
) -> Trace:
    """Keep *concurrency* requests (a function of time) in the system *until* then: a closed loop."""
    index = 0
    while replica.now < until:
        while replica.num_requests < concurrency(replica.now):
            replica.submit(shape.arrival(index, replica.now, seed))
            index += 1
        if replica.step() is None:
            replica.now += 0.01
    return replica.trace


def run_open(replica: Replica, arrivals: Iterable[Arrival]) -> Trace:
    """Submit *arrivals* when their time comes, and go on until all have finished."""
    pending = deque(arrivals)
    while pending or replica.num_requests:
        while pending and pending[0].time <= replica.now:
            replica.submit(pending.popleft())
        if replica.step() is None:
            if not pending:
                break
            replica.now = max(replica.now, pending[0].time)
    return replica.trace
