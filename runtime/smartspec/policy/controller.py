"""The policy as the scheduler meets it: decide before a step, learn after it, explain at any time."""

from dataclasses import asdict
from typing import Any

import numpy as np

from smartspec.policy.acceptance import AcceptanceModel
from smartspec.policy.batch_arrays import choices_of, costs_of, features_of, problem_of, survival
from smartspec.policy.goodput import Plan, optimise
from smartspec.policy.latency import LatencyModel
from smartspec.policy.settings import PolicySettings, Priors
from smartspec.policy.slo import HEADROOM, TpotGuard
from smartspec.policy.types import BatchState, Decision, Limits, StepOutcome

SWITCHING_MARGIN = 0.01
"""Starting or stopping the draft must promise this much more goodput than going on as before."""


class SpeculationPolicy:
    """Chooses k for every request at every step by predicted goodput, and learns from what came of it.

    *key* names what the models are valid for (see `Priors.key`).
    """

    def __init__(self, settings: PolicySettings, *, key: str) -> None:
        self._key = key
        self._acceptance = AcceptanceModel()
        self._latency = LatencyModel()
        self._guard = TpotGuard()
        self._drafting = True
        self._rate = 1.0
        self._last: Decision | None = None
        self.apply(settings)

    @property
    def settings(self) -> PolicySettings:
        """The settings in force."""
        return self._settings

    def apply(self, settings: PolicySettings) -> None:
        """Put *settings* in force, taking in their priors; raises ValueError when those were learned elsewhere."""
        priors = settings.priors
        if priors is not None and priors.key != self._key:
            raise ValueError(f"priors.key is {priors.key!r}, but this runtime is {self._key!r}")
        self._settings = settings
        self._guard.reset()
        if priors is not None:
            self._acceptance.adopt(priors.acceptance)
            if priors.latency is not None:
                self._latency.adopt(priors.latency)

    def decide(self, batch: BatchState) -> Decision:
        """What each request should speculate in the coming step."""
        baseline = features_of(batch, None)
        baseline_seconds = self._latency.predict(baseline).total if baseline.target_tokens else 0.0
        num = len(batch.candidates)
        idle = Decision(
            predicted_seconds=baseline_seconds,
            predicted_tokens=float(num),
            baseline_seconds=baseline_seconds,
            baseline_tokens=float(num),
            reason="no speculation",
        )
        forced = self._forced(batch)
        ceiling = self._settings.max_speculative_tokens
        if not num or not ceiling or batch.max_nodes <= 0 or not forced.any():
            return self._remember(idle)
        chances = survival(batch.candidates, self._acceptance, ceiling)
        target = self._settings.tpot_target_seconds
        problem = problem_of(batch, chances, forced, tpot_target_seconds=target and HEADROOM * target)
        plan = optimise(
            problem,
            costs_of(batch, self._latency),
            rate=self._rate,
            margin=SWITCHING_MARGIN,
            drafting=self._drafting,
        )
        self._rate = plan.goodput
        self._drafting = bool(plan.uses_draft.any())
        if not plan.num_tokens.any():
            return self._remember(idle)
        return self._remember(self._decision(batch, plan, idle))

    def _decision(self, batch: BatchState, plan: Plan, idle: Decision) -> Decision:
        return Decision(
            choices=choices_of(batch, plan),
            predicted_seconds=self._latency.predict(features_of(batch, plan)).total,
            predicted_tokens=plan.tokens,
            baseline_seconds=idle.baseline_seconds,
            baseline_tokens=idle.baseline_tokens,
            reason=f"mean k {plan.num_tokens.mean():.1f} by goodput",
        )

    def _forced(self, batch: BatchState) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Tokens each request takes regardless of goodput, -1 where the policy is free."""
        ceiling = self._settings.max_speculative_tokens
        auto = {"off": 0, "fixed": ceiling}.get(self._settings.policy, -1)
        values = {"auto": auto, "off": 0, "fixed": ceiling}
        return np.array([values[c.mode] for c in batch.candidates], dtype=np.intp)

    def _remember(self, decision: Decision) -> Decision:
        self._last = decision
        return decision

    def limits(self, batch: BatchState) -> Limits:
        """How many requests may run, and how much prefill a step may take, within the TPOT target."""
        target = self._settings.tpot_target_seconds
        if target is None:
            return Limits()
        depth = 0 if self._settings.policy == "off" else self._settings.max_speculative_tokens
        return self._guard.limits(batch, target, self._latency, self._acceptance, depth)

    def observe(self, outcome: StepOutcome) -> None:
        """Learn from a step: its time and what was accepted."""
        self._latency.observe(outcome.features, outcome.seconds)
        self._acceptance.observe(outcome.outcomes, outcome.tokens_kept)
        self._guard.observe(outcome)

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a finished request."""
        self._acceptance.forget(request_id)

    def priors(self) -> Priors:
        """What was learned, to hand on to other replicas."""
        return Priors(key=self._key, latency=self._latency.prior(), acceptance=self._acceptance.priors())

    def explain(self) -> dict[str, Any]:
        """What was chosen lately and why, JSON-ready."""
        return {
            "policy": self._settings.policy,
            "latency": {"coefficients": self._latency.coefficients(), "error": self._latency.error},
            "last": asdict(self._last) if self._last else None,
        }
