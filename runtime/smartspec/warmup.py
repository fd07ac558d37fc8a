"""A few seconds of rehearsal before the first request, so that the policy's first predictions rest on measurements.

Made-up requests go through a scheduler of their own, but through the real proposer and runner, in batches from one to
the largest. Only times are learned: how often nonsense is accepted says nothing about text.
"""

import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from smartspec.config import SchedulerConfig
from smartspec.engine import Engine, Proposer, Runner
from smartspec.policy.settings import PolicySettings, Priors
from smartspec.policy.types import BatchState, Choice, Decision, Limits, StepOutcome
from smartspec.policy.types import Proposer as ProposerName
from smartspec.scheduling.policy_protocol import Policy
from smartspec.scheduling.request import Request, SamplingParams
from smartspec.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)

WARMUP_SECONDS = 4.0
SPECULATIVE_TOKENS = (0, 4, 1, 8, 2, 0, 4)
"""The k of one request's steps, in order."""

BATCH_SPECULATIVE_TOKENS = (0, 4, 1)
"""The same for many requests, where a step costs more and a little says as much."""

SHORT_PROMPT_TOKENS = 8
LONG_PROMPT_TOKENS = 384

D = TypeVar("D")


def is_needed(priors: Priors | None) -> bool:
    """Whether there is nothing better to begin with: no time model with evidence behind it was handed in."""
    return priors is None or priors.latency is None or priors.latency.weight <= 0


@dataclass
class _Rehearsal:
    """A policy that speculates as told and passes on nothing but times, once the first steps are behind."""

    policy: Policy
    num_tokens: int = 0
    is_learning: bool = False
    num_observed: int = 0
    settings: PolicySettings = field(default_factory=lambda: PolicySettings(policy="fixed"))

    def rests(self, num_requests: int) -> bool:
        return False

    def limits(self, batch: BatchState) -> Limits:
        return Limits()

    def decide(self, batch: BatchState) -> Decision:
        able = [c for c in batch.candidates if c.draft_lag_tokens is not None and c.max_speculative_tokens]
        return Decision(
            {c.request_id: Choice("draft", min(self.num_tokens, c.max_speculative_tokens)) for c in able}
            if self.num_tokens
            else {}
        )

    def observe(self, outcome: StepOutcome) -> None:
        if self.is_learning:
            self.num_observed += 1
            self.policy.observe(replace(outcome, outcomes=(), tokens_kept=0))

    def forget(self, request_id: str) -> None:
        """Nothing is kept of anyone."""


class WarmUp:
    """Rehearses until *budget_seconds* of the *clock* are over or all batch sizes were seen."""

    def __init__(
        self,
        config: SchedulerConfig,
        policy: Policy,
        proposer: Proposer[D],
        runner: Runner[D],
        clock: Callable[[], float],
        *,
        num_blocks: int,
        max_model_len: int,
        vocab_size: int,
        proposers: Collection[ProposerName] = (),
    ) -> None:
        self._rehearsal = _Rehearsal(policy)
        self._drafts = "draft" in proposers
        self._scheduler = Scheduler(
            config,
            self._rehearsal,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
            proposers=("draft",) if self._drafts else (),
        )
        self._engine = Engine(self._scheduler, proposer, runner, clock)
        self._clock = clock
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._random = random.Random(0)

    def run(self, budget_seconds: float = WARMUP_SECONDS) -> int:
        """How many steps the policy has learned from. A step that has begun is not cut short."""
        began = self._clock()
        deadline = began + budget_seconds
        # Kernels load and memory is first touched in the first steps: what they take says nothing of later ones.
        self._play(1, SHORT_PROMPT_TOKENS, (0, 2), deadline)
        self._rehearsal.is_learning = True
        for num_requests, num_prompt_tokens in self._rounds():
            depths = SPECULATIVE_TOKENS if num_requests == 1 else BATCH_SPECULATIVE_TOKENS
            if not self._play(num_requests, num_prompt_tokens, depths, deadline):
                break
        seconds, steps = self._clock() - began, self._rehearsal.num_observed
        log.info("event=warmed_up steps=%d seconds=%.1f", steps, seconds)
        return steps

    def _rounds(self) -> Iterator[tuple[int, int]]:
        """Batch sizes with prompt lengths, the extremes first: time may not allow for all."""
        largest = self._scheduler.config.max_num_seqs
        between = [4**i for i in range(1, 16) if 4**i < largest]
        for size in (1, largest, *between):
            yield size, SHORT_PROMPT_TOKENS
        yield 2, LONG_PROMPT_TOKENS
        yield max(1, largest // 4), LONG_PROMPT_TOKENS // 2
        yield 1, LONG_PROMPT_TOKENS

    def _play(self, num_requests: int, num_prompt_tokens: int, depths: Sequence[int], deadline: float) -> bool:
        """One batch: its prompts, then a step at each k. False when time is up or nothing fits."""
        if not self._drafts:
            depths = [0] * len(depths)
        max_tokens = 1 + sum(k + 1 for k in depths)
        num_prompt_tokens = min(num_prompt_tokens, self._max_model_len - max_tokens)
        pool = self._scheduler.pool
        num_blocks = pool.blocks_for(num_prompt_tokens + max_tokens)
        if num_prompt_tokens < 1 or num_blocks > pool.num_blocks:
            return False
        num_requests = max(1, min(num_requests, pool.num_blocks // num_blocks))
        for index in range(num_requests):
            self._scheduler.add(self._request(index, num_prompt_tokens, max_tokens))
        in_time = self._steps(depths, deadline)
        for index in range(num_requests):
            self._scheduler.abort(str(index))
        return in_time

    def _steps(self, depths: Sequence[int], deadline: float) -> bool:
        self._rehearsal.num_tokens = 0
        while self._scheduler.waiting or any(r.num_remaining_tokens > 1 for r in self._scheduler.running):
            if self._clock() >= deadline:
                return False
            self._engine.step()
        for self._rehearsal.num_tokens in depths:
            if self._clock() >= deadline:
                return False
            self._engine.step()
        return True

    def _request(self, index: int, num_prompt_tokens: int, max_tokens: int) -> Request:
        prompt = [self._random.randrange(self._vocab_size) for _ in range(num_prompt_tokens)]
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        return Request(str(index), prompt, sampling, noise_seed=0, arrival_time=0.0)
