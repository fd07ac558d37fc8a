"""Keeping a TPOT target: how many may run, and how much prefill may share a step with those who decode.

A request's time per output token is the step's time over the tokens *it* keeps, so speculation may keep a target that
plain decoding breaks, and prefill in the same step makes everyone wait. The choice of k honours the target in
`goodput.optimise`; here is what must be settled before: admission and the prefill chunk.
"""

import numpy as np

from smartspec.policy.acceptance import AcceptanceModel
from smartspec.policy.capacity import SteadyState
from smartspec.policy.latency import LatencyModel
from smartspec.policy.types import BatchState, Limits, StepOutcome

HEADROOM = 0.95
"""Predictions aim at this share of the target: a mean that just keeps it is broken half of the time."""
LEAST_PREFILL_TOKENS = 16
"""A chunk this small always passes: newcomers may be slowed, never starved."""
PREFILL_SIZES = np.unique(np.geomspace(LEAST_PREFILL_TOKENS, 16384, 60).astype(np.intp))
SLOW_REQUESTS = 1.65
"""Standard deviations below the mean acceptance at which the target must still be kept: 95 requests in 100."""
UNKNOWN_CONTEXT = 256.0
"""Mean context assumed until a request has decoded."""
REFRESH_STEPS = 16
"""Admission limits move slowly; they are computed once in so many steps."""
RATIO_STEPS = 400.0
"""The share of prefill in the work is a mean over about this many steps."""


class TpotGuard:
    """Limits that keep the TPOT target, from the policy's own models."""

    def __init__(self) -> None:
        self._prefill_tokens = 0.0
        self._tokens_kept = 0.0
        self._context_tokens = UNKNOWN_CONTEXT
        self._survival = np.empty(0)
        self._age = 0
        self._max_running = 1

    def reset(self) -> None:
        """Compute admission anew at the next step: the target or the models have changed."""
        self._age = 0

    def observe(self, outcome: StepOutcome) -> None:
        """Learn how much prefill work comes with each token put out; steps that nobody decided upon, a warm-up's, say
        nothing of the load."""
        if outcome.decision.predicted_seconds <= 0.0:
            return
        fade = 1.0 - 1.0 / RATIO_STEPS
        self._prefill_tokens = self._prefill_tokens * fade + outcome.features.prefill_tokens
        self._tokens_kept = self._tokens_kept * fade + outcome.tokens_kept

    def limits(
        self, batch: BatchState, target_seconds: float, latency: LatencyModel, acceptance: AcceptanceModel, depth: int
    ) -> Limits:
        """What the coming step may admit when requests speculate at most *depth* tokens."""
        if not latency.num_steps:
            return Limits()
        candidates = batch.candidates
        if candidates:
            self._context_tokens = sum(c.context_tokens for c in candidates) / len(candidates)
            # Who cannot speculate must keep the target too, so all must be able to for speculation to count.
            can_draft = all(c.draft_lag_tokens is not None and c.mode != "off" for c in candidates)
            verifiers = [c.verifier for c in candidates]
            self._survival = (
                acceptance.mean_survival(verifiers, depth, below=SLOW_REQUESTS) if can_draft else np.empty(0)
            )
        state = SteadyState(
            latency=latency,
            survival=self._survival,
            context_tokens=self._context_tokens,
            prefill_per_token=self._prefill_tokens / max(1.0, self._tokens_kept),
            chunk_tokens=LEAST_PREFILL_TOKENS,
        )
        target = HEADROOM * target_seconds
        if self._age % REFRESH_STEPS == 0:
            self._max_running = max(1, state.most_within(target))
        self._age += 1
        return Limits(self._max_running, _most_prefill(state, len(candidates), target) if candidates else None)


def _most_prefill(state: SteadyState, num_decoding: int, target_seconds: float) -> int:
    """The largest chunk, of some sizes, with which a step still keeps the target at some k."""
    tpot = (state.step_seconds(num_decoding, PREFILL_SIZES) / state.tokens_per_step).min(axis=1)
    return int(PREFILL_SIZES[max(0, int(np.searchsorted(tpot, target_seconds, side="right")) - 1)])
