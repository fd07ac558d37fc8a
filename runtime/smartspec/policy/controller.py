"""The policy as the scheduler meets it: decide before a step, learn after it, explain at any time."""

from collections import deque
from typing import Any

from smartspec.policy import uniform
from smartspec.policy.acceptance import AcceptanceModel, Proposed
from smartspec.policy.batch_arrays import (
    BatchColumns,
    Wishes,
    batch_columns,
    choices_of,
    plain_features,
    problem_of,
    wishes_of,
)
from smartspec.policy.columns import by_letter
from smartspec.policy.costs import Costs, costs_of
from smartspec.policy.features import LINE, Regressors
from smartspec.policy.goodput import Plan, optimise
from smartspec.policy.online import OnlineLatencyModel
from smartspec.policy.probing import Prober
from smartspec.policy.settings import PolicySettings, Priors
from smartspec.policy.slo import HEADROOM, TpotGuard
from smartspec.policy.types import BatchState, Candidate, Decision, Limits, StepOutcome

SWITCHING_MARGIN = 0.01
"""Starting or stopping the draft must promise this much more goodput than going on as before."""
RESTING_REQUESTS = 8
"""Fewer requests are asked about at every step: what one of them may suddenly copy is a large part of the step."""
MOST_RESTING_STEPS = 3
"""Where plain decoding is best and stays so, the next steps are plain unasked. Looking for copies and weighing them
takes up to a millisecond for 32 requests, which a server that does not speculate would not pay."""
REMEMBERED_STEPS = 32
"""Steps that `explain` shows one by one."""


class SpeculationPolicy:
    """Chooses k for every request at every step by predicted goodput, and learns from what came of it.

    *key* names what the models are valid for (see `Priors.key`); *token_buckets* are the sizes that a step's tokens
    are padded to where graphs are captured.
    """

    def __init__(self, settings: PolicySettings, *, key: str, token_buckets: tuple[int, ...] = ()) -> None:
        self._key = key
        self._acceptance = AcceptanceModel()
        self._latency = OnlineLatencyModel(Regressors(buckets=token_buckets))
        self._line = OnlineLatencyModel(Regressors(knots=LINE))
        self._guard = TpotGuard()
        self._prober = Prober()
        self._drafting = True
        self._is_free = False
        self._plain_streak, self._resting = 0, 0
        self._rate = 1.0
        self._steps: deque[dict[str, Any]] = deque(maxlen=REMEMBERED_STEPS)
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
        ceiling = settings.max_speculative_tokens
        auto = {"off": 0, "fixed": ceiling}.get(settings.policy, -1)
        self._forced = by_letter({"auto": auto, "off": 0, "fixed": ceiling})
        self._guard.reset()
        self._plain_streak, self._resting = 0, 0
        if priors is not None:
            self._acceptance.adopt(priors.acceptance)
            if priors.latency is not None:
                self._latency.adopt(priors.latency)
        if settings.policy == "batch" and not self._line.num_steps:
            learned = self._latency.line()
            if learned is not None:
                self._line.adopt(learned)

    def rests(self, num_requests: int) -> bool:
        """Whether a coming step of so many decoding requests is plain unasked, unless one of them insists: nobody else
        need look for what could be copied."""
        return self._resting > 0 and num_requests >= RESTING_REQUESTS

    def decide(self, batch: BatchState) -> Decision:
        """What each request should speculate in the coming step."""
        num, ceiling = len(batch.candidates), self._settings.max_speculative_tokens
        self._is_free = False
        if not self._may_speculate(batch):
            return self._plain(batch)
        rests = self.rests(num)
        if rests and not any(_insists(candidate) for candidate in batch.candidates):
            self._is_free = True
            self._resting -= 1
            return self._plain(batch, "plain decoding was best just now")
        columns = batch_columns(batch.candidates, self._acceptance)
        wishes = wishes_of(columns, self._forced)
        if not wishes.least and not wishes.most:
            return self._plain(batch)
        # As many nodes as anybody may ask the price of: all that there may be, and two for each request.
        most_nodes = max(min(num * ceiling, batch.max_nodes), 2 * num)
        costs = costs_of(batch, self._latency, wishes.context_tokens, most_nodes)
        weighed = costs
        if self._settings.policy == "batch":
            weighed = costs_of(batch, self._line, wishes.context_tokens, most_nodes)
        plan, probe = self._plan(batch, columns, wishes, weighed)
        num_nodes, baseline = plan.num_nodes, float(costs.target[0])
        seconds, tokens = baseline, float(num)
        if num_nodes:
            seconds = float(costs.target[num_nodes])
            seconds += costs.draft_seconds(plan.num_tokens, plan.uses_draft, columns.lag, columns.context)
            tokens = plan.tokens
        gain = tokens * baseline / max(num * seconds, 1e-12) - 1.0
        if probe:
            reason = f"probe, mean k {num_nodes / num:.1f}"
        elif wishes.least >= 0:
            reason = f"fixed, mean k {num_nodes / num:.1f}"
        elif not num_nodes:
            reason = "plain decoding is best"
        else:
            reason = f"mean k {num_nodes / num:.1f} promises {100 * gain:+.0f} % goodput"
        # Where a rest was broken, hardly anybody was looked at: that such a step is plain says nothing. And beside a
        # request with a length of its own nobody rests.
        is_plain = wishes.least < 0 and wishes.most <= 0 and not (rests or num_nodes or probe)
        self._rest_after(num, is_plain=is_plain)
        choices = choices_of(columns.request_ids, plan)
        return Decision(choices, seconds, tokens, baseline, float(num), probe=probe, reason=reason)

    def _plan(self, batch: BatchState, columns: BatchColumns, wishes: Wishes, costs: Costs) -> tuple[Plan, bool]:
        """The plan for a batch in which somebody may speculate, and whether it is a probe."""
        target = self._settings.tpot_target_seconds
        by_paper = self._settings.policy == "batch"
        problem = problem_of(
            columns,
            self._acceptance,
            costs,
            wishes.forced,
            self._settings.max_speculative_tokens,
            max_nodes=batch.max_nodes,
            tpot_target_seconds=None if target is None else HEADROOM * target,
            by_paper=by_paper,
        )
        if wishes.least >= 0:
            return uniform.fixed(problem, costs, wishes.forced), False
        self._is_free = True
        if by_paper:
            plan = uniform.batch(problem, costs)
        else:
            plan = optimise(problem, costs, rate=self._rate, margin=SWITCHING_MARGIN, drafting=self._drafting)
        self._rate = plan.goodput
        self._drafting = bool(plan.uses_draft.any())
        probe = self._prober.probe(
            plan,
            problem,
            costs,
            columns,
            self._acceptance,
            plain_uncertainty=lambda: self._latency.uncertainty(plain_features(batch, wishes.context_tokens)),
        )
        return (plan, False) if probe is None else (probe, True)

    def _rest_after(self, num_requests: int, *, is_plain: bool) -> None:
        """Rest the longer, the more often in a row plain decoding was best. Never under a TPOT target: there the best
        plan hangs on who is about to miss it."""
        may_rest = num_requests >= RESTING_REQUESTS and self._settings.tpot_target_seconds is None
        self._plain_streak = self._plain_streak + 1 if is_plain and may_rest else 0
        self._resting = min(max(0, self._plain_streak - 1), MOST_RESTING_STEPS)

    def _may_speculate(self, batch: BatchState) -> bool:
        """Whether there is room for speculation, and somebody who may want it."""
        if not self._settings.max_speculative_tokens or batch.max_nodes <= 0 or not batch.candidates:
            return False
        return self._settings.policy != "off" or any(c.mode == "fixed" for c in batch.candidates)

    def _plain(self, batch: BatchState, reason: str = "") -> Decision:
        """The step without speculation."""
        num, seconds = len(batch.candidates), 0.0
        if num or batch.prefill_tokens:
            context_tokens = sum([c.context_tokens for c in batch.candidates])
            seconds = self._latency.predict(plain_features(batch, context_tokens)).total
        if not reason:
            reason = "no room for speculation" if self._settings.policy != "off" and num else "no speculation wanted"
        return Decision({}, seconds, num, seconds, num, reason=reason)

    def limits(self, batch: BatchState) -> Limits:
        """How many requests may run, and how much prefill a step may take, within the TPOT target."""
        target = self._settings.tpot_target_seconds
        if target is None:
            return Limits()
        depth = 0 if self._settings.policy == "off" else self._settings.max_speculative_tokens
        return self._guard.limits(batch, target, self._latency, self._acceptance, depth)

    def observe(self, outcome: StepOutcome) -> None:
        """Learn from a step: its time, and what of its proposals was kept."""
        self._latency.observe(outcome.features, outcome.seconds)
        if self._settings.policy == "batch":
            self._line.observe(outcome.features, outcome.seconds)
        proposed = self._acceptance.observe(outcome.outcomes, outcome.tokens_kept)
        self._guard.observe(outcome)
        self._prober.earn(outcome.seconds.total, poor=self._latency.is_poor, free=self._is_free)
        self._steps.append(_step_row(outcome, proposed))

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a finished request."""
        self._acceptance.forget(request_id)

    def priors(self) -> Priors:
        """What was learned, to hand on to other replicas."""
        return Priors(key=self._key, latency=self._latency.prior(), acceptance=self._acceptance.priors())

    def explain(self) -> dict[str, Any]:
        """What was chosen lately and why, and what it rests on; JSON-ready, seconds and tokens throughout."""
        latency = self._latency
        return {
            "policy": self._settings.policy,
            "generation": self._settings.generation,
            "max_speculative_tokens": self._settings.max_speculative_tokens,
            "tpot_target_seconds": self._settings.tpot_target_seconds,
            "key": self._key,
            "switching_margin": SWITCHING_MARGIN,
            "time_model": {
                "steps": latency.num_steps,
                "draft_steps": latency.num_draft_steps,
                "relative_error": latency.error,
                "is_poor": latency.is_poor,
                "coefficients": {n: v for n, v in latency.coefficients().items() if v > 0.0},
            },
            "acceptance": {"pairs": self._acceptance.table(), "spread_between_requests": self._acceptance.spread},
            "probes": self._prober.report(),
            "steps": list(self._steps),
        }


def _step_row(outcome: StepOutcome, proposed: Proposed) -> dict[str, Any]:
    """One step as `explain` shows it: chosen, predicted, measured. Figures alone: letting go of hundreds of requests'
    outcomes many steps later, when no cache holds them any more, would delay the step that follows."""
    decision = outcome.decision
    return {
        "reason": decision.reason,
        "probe": decision.probe,
        "requests": decision.baseline_tokens,
        "draft_tokens": proposed.draft_tokens,
        "lookup_tokens": proposed.lookup_tokens,
        "predicted_seconds": decision.predicted_seconds,
        "measured_seconds": outcome.seconds.total,
        "draft_seconds": outcome.seconds.draft,
        "target_seconds": outcome.seconds.target,
        "host_seconds": outcome.seconds.host,
        "predicted_tokens": decision.predicted_tokens,
        "kept_tokens": outcome.tokens_kept,
        "wasted_tokens": proposed.wasted_tokens,
        "catchup_tokens": outcome.features.catchup_tokens,
        "plain_seconds": decision.baseline_seconds,
    }


def _insists(candidate: Candidate) -> bool:
    """Whether a rest ends for it: it asks for a length of its own, or has something to copy where nobody looked, which
    its grammar forces or its client predicts."""
    return candidate.mode == "fixed" or candidate.lookup_tokens > 0
