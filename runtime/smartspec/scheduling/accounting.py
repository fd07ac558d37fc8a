"""What one step amounted to: evidence for the policy, and numbers for those who watch."""

from collections import Counter

from smartspec.policy.types import RequestOutcome, StepOutcome
from smartspec.scheduling.output import ModelRunnerOutput, SampledTokens, ScheduledRequest, SchedulerOutput, StepStats


class StepTally:
    """Counts over the requests of one step, filled while their tokens are committed."""

    def __init__(self, plan: SchedulerOutput, result: ModelRunnerOutput) -> None:
        self._plan = plan
        self._result = result
        self._tokens_kept = 0
        self._outcomes: list[RequestOutcome] = []
        self._k_by_request: list[tuple[str, int]] = []
        self._drafted: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._accepted_by_position: list[int] = []

    def count(self, scheduled: ScheduledRequest, sampled: SampledTokens, num_kept: int) -> None:
        """Add one request that drew tokens, of which the first *num_kept* were committed."""
        self._tokens_kept += num_kept
        drafted, accepted = sampled.num_drafted, min(sampled.num_accepted, num_kept)
        proposer = scheduled.proposer if drafted else None
        source = scheduled.source if drafted else None
        if scheduled.num_output_tokens and len(scheduled.token_ids) == 1:
            self._k_by_request.append((source or "none", drafted))
        if proposer is None or source is None:
            return
        self._drafted[source] += drafted
        self._accepted[source] += accepted
        while len(self._accepted_by_position) < drafted:
            self._accepted_by_position.append(0)
        for position in range(accepted):
            self._accepted_by_position[position] += 1
        # What lies behind a stop is censored: neither accepted nor rejected, and no evidence for the policy.
        seen = min(drafted, num_kept) if num_kept <= sampled.num_accepted else drafted
        self._outcomes.append(
            RequestOutcome(
                scheduled.request_id, proposer, scheduled.verifier, seen, accepted, scheduled.lookup_match_tokens
            )
        )

    def outcome(self) -> StepOutcome:
        """The step as the policy's evidence."""
        result = self._result
        return StepOutcome(
            self._plan.decision, result.features, result.seconds, tuple(self._outcomes), self._tokens_kept
        )

    def stats(self, num_running: int, num_waiting: int, kv_cache_usage: float) -> StepStats:
        """The step as data for exporters; the arguments are the state after it."""
        return StepStats(
            decision=self._plan.decision,
            features=self._result.features,
            seconds=self._result.seconds,
            tokens_kept=self._tokens_kept,
            num_running=num_running,
            num_waiting=num_waiting,
            kv_cache_usage=kv_cache_usage,
            num_preempted=self._plan.num_preempted,
            drafted_by_proposer=dict(self._drafted),
            accepted_by_proposer=dict(self._accepted),
            k_by_request=tuple(self._k_by_request),
            accepted_by_position=tuple(self._accepted_by_position),
            num_drafts=len(self._outcomes),
            catchup_tokens=self._result.features.catchup_tokens,
            prefix_query_tokens=self._plan.prefix_query_tokens,
            prefix_hit_tokens=self._plan.prefix_hit_tokens,
        )
