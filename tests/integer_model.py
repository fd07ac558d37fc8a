"""A runner, a proposer and a policy in plain integers, for tests of scheduling without tensors.

The "model" is a hash of the whole prefix, read back from a paged cache through the block table: a block lost, shared
by mistake, or computed at the wrong position changes the text.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smartspec.policy.settings import PolicySettings, Priors
from smartspec.policy.types import (
    BatchState,
    Choice,
    Decision,
    Limits,
    Proposer,
    StepFeatures,
    StepOutcome,
    StepSeconds,
)
from smartspec.scheduling.output import ModelRunnerOutput, SampledTokens, ScheduledRequest, SchedulerOutput
from smartspec.scheduling.request import TokenLogprob

VOCAB_SIZE = 20


def next_token(prefix: Sequence[int], salt: int = 0) -> int:
    """What the model says after *prefix*."""
    return zlib.crc32(repr((salt, list(prefix))).encode()) % VOCAB_SIZE


def generate(prompt: Sequence[int], max_tokens: int, stop_token_ids: frozenset[int] = frozenset()) -> list[int]:
    """The text that any schedule must give."""
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        tokens.append(next_token([*prompt, *tokens]))
        if tokens[-1] in stop_token_ids:
            break
    return tokens


@dataclass
class PagedTokens:
    """A KV cache that holds tokens in place of keys and values."""

    block_size: int
    slots: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def write(self, block_table: Sequence[int], start: int, token_ids: Sequence[int]) -> None:
        """Put *token_ids* at positions from *start*."""
        for position, token_id in enumerate(token_ids, start):
            slot = block_table[position // self.block_size], position % self.block_size
            self.slots[slot] = (position, token_id)

    def read(self, block_table: Sequence[int], length: int) -> list[int]:
        """The tokens at positions 0 .. length - 1; fails where another position's token lies."""
        tokens = []
        for position in range(length):
            slot = block_table[position // self.block_size], position % self.block_size
            written_for, token_id = self.slots[slot]
            assert written_for == position, f"slot {slot} holds position {written_for}, not {position}"
            tokens.append(token_id)
        return tokens


@dataclass
class IntegerProposer:
    """Drafts with a model that agrees with the target about two times in three, over its own paged cache."""

    block_size: int
    num_forwards: int = 0
    num_fed_tokens: int = 0
    target_cache: PagedTokens | None = None
    """When given, what the draft has seen must be what the target has seen: else it only guesses."""

    def __post_init__(self) -> None:
        self.cache = PagedTokens(self.block_size)

    def propose(self, plan: SchedulerOutput) -> dict[str, tuple[int, ...]]:
        """Proposed tokens by request."""
        return {r.request_id: self._draft(r) for r in plan.scheduled if r.num_speculative_tokens}

    def _draft(self, scheduled: ScheduledRequest) -> tuple[int, ...]:
        if scheduled.proposer == "lookup":
            assert len(scheduled.lookup_tokens) == scheduled.num_speculative_tokens
            return scheduled.lookup_tokens
        table, start = scheduled.block_table, scheduled.draft_start
        self.cache.write(table, start, scheduled.catchup_token_ids)
        self.num_fed_tokens += len(scheduled.catchup_token_ids)
        length = start + len(scheduled.catchup_token_ids)
        assert length == scheduled.start + 1, "the draft is fed up to and including the newest token"
        if self.target_cache is not None:
            seen = self.target_cache.read(table, scheduled.start)
            assert self.cache.read(table, scheduled.start) == seen, "the draft lacks what the target knows"
        drafted: list[int] = []
        for depth in range(scheduled.num_speculative_tokens):
            self.num_forwards += 1
            prefix = self.cache.read(table, length)
            token_id = next_token(prefix) if next_token(prefix, salt=1) % 3 else next_token(prefix, salt=2)
            drafted.append(token_id)
            if depth < scheduled.num_speculative_tokens - 1:
                self.cache.write(table, length, [token_id])
                length += 1
        return tuple(drafted)


@dataclass
class IntegerRunner:
    """Verifies proposals against the hash model and notes what each step was."""

    block_size: int
    steps: list[SchedulerOutput] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = PagedTokens(self.block_size)

    def execute(self, plan: SchedulerOutput, drafts: dict[str, tuple[int, ...]]) -> ModelRunnerOutput:
        """One step."""
        self.steps.append(plan)
        sampled: dict[str, SampledTokens] = {}
        progress: dict[str, int] = {}
        for scheduled in plan.scheduled:
            proposal = drafts.get(scheduled.request_id, ())
            self.cache.write(scheduled.block_table, scheduled.start, [*scheduled.token_ids, *proposal])
            committed = scheduled.start + len(scheduled.token_ids)
            if not scheduled.samples:
                continue
            tokens: list[int] = []
            for row in range(len(proposal) + 1):
                tokens.append(next_token(self.cache.read(scheduled.block_table, committed + row)))
                if row < len(proposal) and tokens[-1] != proposal[row]:
                    break
            accepted = len(tokens) - 1
            sampled[scheduled.request_id] = SampledTokens(tuple(tokens), len(proposal), accepted)
            if scheduled.proposer == "draft":
                progress[scheduled.request_id] = committed + min(accepted, len(proposal) - 1)
        features = StepFeatures(
            target_tokens=plan.num_tokens,
            context_tokens=sum(r.start + len(r.token_ids) for r in plan.scheduled),
            num_requests=len(plan.scheduled),
            prefill_tokens=plan.num_prefill_tokens,
        )
        scored = {r.request_id: [TokenLogprob(t, 0.0, 1) for t in r.prompt_targets] for r in plan.scheduled}
        return ModelRunnerOutput(sampled, progress, features, StepSeconds(0.0, 0.0, 0.0), scored)


@dataclass
class RandomPolicy:
    """Chooses any k from any proposer, or always *fixed_k* from *proposer*."""

    seed: int = 0
    fixed_k: int | None = None
    proposer: Proposer | None = None
    bounds: Limits = Limits()
    settings: PolicySettings = PolicySettings()
    observed: list[StepOutcome] = field(default_factory=list)
    states: list[BatchState] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def rests(self, num_requests: int) -> bool:
        """Never: everybody is asked about."""
        return False

    def limits(self, batch: BatchState) -> Limits:
        """As given."""
        return self.bounds

    def decide(self, batch: BatchState) -> Decision:
        """Random, within what each candidate can do."""
        self.states.append(batch)
        choices: dict[str, Choice] = {}
        for candidate in batch.candidates:
            proposer = self.proposer or self._random.choice(("draft", "lookup"))
            most = candidate.max_speculative_tokens if proposer == "draft" else candidate.lookup_tokens
            if proposer == "draft" and candidate.draft_lag_tokens is None:
                most = 0
            num_tokens = min(most, self._random.randint(0, 8) if self.fixed_k is None else self.fixed_k)
            if num_tokens:
                choices[candidate.request_id] = Choice(proposer, num_tokens)
        return Decision(choices)

    def observe(self, outcome: StepOutcome) -> None:
        """Keep it."""
        self.observed.append(outcome)

    def forget(self, request_id: str) -> None:
        """Keep that too."""
        self.forgotten.append(request_id)

    def apply(self, settings: PolicySettings) -> None:
        """Take *settings* over."""
        self.settings = settings

    def priors(self) -> Priors:
        """Nothing learned."""
        return Priors(key="integers")

    def explain(self) -> dict[str, Any]:
        """How many steps were seen."""
        return {"steps": len(self.observed)}
