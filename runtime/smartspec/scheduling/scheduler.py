"""Which tokens run in the next step, and what becomes of the result.

There are no phases: each request's `num_computed_tokens` chases its `num_tokens`. That covers chunked prefill,
recomputation after preemption, and speculation alike. All state here belongs to the one thread that steps the engine.
"""

from bisect import insort
from collections.abc import Iterable

from smartspec.config import SchedulerConfig
from smartspec.policy.types import BatchState, Limits, Proposer
from smartspec.scheduling.accounting import StepTally
from smartspec.scheduling.admission import check_fits
from smartspec.scheduling.block_pool import BlockPool
from smartspec.scheduling.client import InvalidRequestError
from smartspec.scheduling.output import ModelRunnerOutput, RequestOutput, ScheduledRequest, SchedulerOutput, StepOutput
from smartspec.scheduling.policy_protocol import Policy
from smartspec.scheduling.prefix_cache import PrefixCache
from smartspec.scheduling.request import MAX_SCORED_TOKENS, FinishReason, Request, RequestStatus
from smartspec.scheduling.speculation import Grant, SpeculationRoom
from smartspec.scheduling.stopping import finish_reason_at
from smartspec.scheduling.waiting_queue import WaitingQueue


class Scheduler:
    """Steps over *num_blocks* KV blocks: who starts next, `WaitingQueue` says; when blocks run out, the least urgent of
    the running requests goes back into the queue, the newest first.

    *proposers* are the ones that exist ("draft", "lookup").
    """

    def __init__(
        self,
        config: SchedulerConfig,
        policy: Policy,
        *,
        num_blocks: int,
        max_model_len: int,
        proposers: Iterable[Proposer] = (),
    ) -> None:
        self.config = config
        self.pool = BlockPool(num_blocks, config.block_size)
        self.max_model_len = max_model_len
        self.waiting = WaitingQueue()
        self.running: list[Request] = []  # by precedence, then by age
        self._policy = policy
        self._requests: dict[str, Request] = {}
        self._prefixes = PrefixCache(self.pool, enabled=config.prefix_caching)
        self._speculation = SpeculationRoom(
            self.pool,
            self._prefixes,
            proposers,
            max_model_len=max_model_len,
            max_catchup_tokens=config.max_num_batched_tokens,
        )

    @property
    def has_work(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._requests)

    def add(self, request: Request) -> None:
        """Queue *request*; raises InvalidRequestError when it could never run to its end."""
        if request.request_id in self._requests:
            raise InvalidRequestError("request_id", f"request {request.request_id!r} is already being served")
        check_fits(request.num_prompt_tokens, request.sampling.max_tokens, self.max_model_len, self.pool.num_tokens)
        self._requests[request.request_id] = request
        self.waiting.push(request)

    def abort(self, request_id: str) -> None:
        """End a request and free its blocks now; an unknown one has ended already."""
        self.finish(request_id, None, "abort")

    def finish(self, request_id: str, num_output_tokens: int | None, reason: FinishReason) -> None:
        """End a request after its first *num_output_tokens* tokens (None: all it has), as one that knows text may ask.

        An unknown request has ended already: a stop string and max_tokens may meet in one step.
        """
        request = self._requests.get(request_id)
        if request is None:
            return
        if num_output_tokens is not None:
            del request.token_ids[request.num_prompt_tokens + num_output_tokens :]
        (self.running if request.status is RequestStatus.RUNNING else self.waiting).remove(request)
        self._release(request, reason)

    def check_idle(self) -> None:
        """Raise RuntimeError when nothing runs or waits and yet something is still held."""
        if not self.has_work:
            self.pool.check_idle()
            if self.running or self.waiting or not self._speculation.is_idle:
                raise RuntimeError("the scheduler still holds requests while nothing runs or waits")

    # -- planning -------------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        """Plan one step: decode first, then prompts as far as the budget goes, then speculation in what is left."""
        decoding, num_preempted = self._reserve_decode_slots()
        copies = not self._policy.rests(len(decoding))
        offers = self._speculation.offers(decoding, self._policy.settings, copies=copies)
        candidates = tuple(candidate for candidate, _ in offers)
        budget = self.config.max_num_batched_tokens - len(decoding)
        limits = self._policy.limits(BatchState(candidates, max_nodes=budget))
        chunks, newcomers = self._schedule_prefills(budget, limits, decodes=bool(decoding), admits=not num_preempted)
        prefill_tokens = sum(num for _, num in chunks)
        decision = self._policy.decide(
            BatchState(
                candidates,
                prefill_tokens=prefill_tokens,
                prefill_context_tokens=sum(request.num_computed_tokens + num for request, num in chunks),
                num_prefills=len(chunks),
                max_nodes=budget - prefill_tokens,
            )
        )
        grants = self._speculation.grant(decision, decoding, offers, budget - prefill_tokens)
        scheduled = [self._plan(request, 1, grants.get(request.request_id)) for request in decoding]
        scheduled += [self._plan(request, num, None) for request, num in chunks]
        return SchedulerOutput(
            tuple(scheduled),
            decision,
            prefill_tokens,
            num_preempted,
            first_scheduled=tuple(request.request_id for request in newcomers),
            prefix_query_tokens=sum(r.num_tokens for r in newcomers) if self._prefixes.is_enabled else 0,
            prefix_hit_tokens=sum(request.num_cached_tokens for request in newcomers),
        )

    def _reserve_decode_slots(self) -> tuple[list[Request], int]:
        """Give every decoding request a slot for its newest token in order, preempting from the other end.

        The first always gets on: it may take the blocks of all others, and alone it fits (see `add`).
        """
        decoding: list[Request] = []
        num_preempted = 0
        for request in list(self.running):
            if request.status is not RequestStatus.RUNNING or request.num_remaining_tokens != 1:
                continue
            while not self.pool.grow(request.block_table, request.num_tokens):
                victim = self.running[-1]
                self._preempt(victim)
                num_preempted += 1
                if victim is request:
                    break
            else:
                decoding.append(request)
        return decoding, num_preempted

    def _preempt(self, request: Request) -> None:
        """Back to the front of the queue: it keeps its tokens, and computes again what it does not find then."""
        self.running.remove(request)
        self._prefixes.drop(request)
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        self.waiting.push_preempted(request)

    def _schedule_prefills(
        self, budget: int, limits: Limits, *, decodes: bool, admits: bool
    ) -> tuple[list[tuple[Request, int]], list[Request]]:
        """Chunks of prompts for this step, and who left the queue for the first time.

        A request is admitted with blocks for all its tokens at once, so that only decoding ever runs out of blocks.
        What a chunk will fill is published at once: of many that come together with one prefix, only the first
        computes it. The policy's bound on prefill protects running requests; with none decoding there is no one to
        protect.
        """
        if decodes and limits.max_prefill_tokens is not None:
            budget = min(budget, max(1, limits.max_prefill_tokens))
        chunks: list[tuple[Request, int]] = []
        newcomers: list[Request] = []
        scorable = MAX_SCORED_TOKENS
        for request in self.running:
            num = request.chunk(budget, scorable) if request.num_remaining_tokens > 1 else 0
            if num:
                self._prefixes.publish(request, request.num_computed_tokens + num)
                chunks.append((request, num))
                budget -= num
                scorable -= num if request.is_scoring else 0
        max_running = self._max_running(limits)
        while admits and self.waiting and budget and len(self.running) < max_running:
            request = self.waiting.head
            # Some blocks stay free for those who run already, or the newcomer is preempted within a few steps.
            watermark = self.pool.num_blocks // 100 + 1 if self.running else 0
            # Whose prompt is scored needs the rows of all of it.
            found = [] if request.is_scoring else self._prefixes.find(request)
            missing = self.pool.blocks_for(request.num_tokens) - self.pool.num_held(found)
            if missing + watermark > self.pool.num_free or (request.is_scoring and not scorable):
                break
            self.waiting.pop()
            self._prefixes.take(request, found)
            self.pool.grow(request.block_table, request.num_tokens)
            request.status = RequestStatus.RUNNING
            insort(self.running, request, key=lambda running: running.precedence)
            if not request.num_preemptions:
                request.num_cached_tokens = request.num_computed_tokens
                newcomers.append(request)
                self.waiting.charge(request, prompt_tokens=request.num_prompt_tokens - request.num_cached_tokens)
            num = request.chunk(budget, scorable)
            self._prefixes.publish(request, request.num_computed_tokens + num)
            chunks.append((request, num))
            budget -= num
            scorable -= num if request.is_scoring else 0
        return chunks, newcomers

    def _max_running(self, limits: Limits) -> int:
        """How many requests may run: the tightest of configuration, settings and policy, but always one."""
        bounds = (limits.max_running_requests, self._policy.settings.max_running_requests)
        return max(1, min([self.config.max_num_seqs, *(bound for bound in bounds if bound is not None)]))

    def _plan(self, request: Request, num_tokens: int, grant: Grant | None) -> ScheduledRequest:
        start, end = request.num_computed_tokens, request.num_computed_tokens + num_tokens
        drafts = grant is not None and grant.proposer == "draft"
        return ScheduledRequest(
            request_id=request.request_id,
            token_ids=request.token_ids[start:end],
            start=start,
            samples=end == request.num_tokens,
            block_table=request.block_table,
            sampling=request.sampling,
            noise_seed=request.noise_seed,
            verifier=request.verifier,
            num_output_tokens=request.num_output_tokens,
            proposer=grant.proposer if grant else None,
            num_speculative_tokens=grant.num_tokens if grant else 0,
            lookup_match_tokens=grant.lookup_match_tokens if grant else 0,
            lookup_tokens=grant.lookup_tokens if grant else (),
            lookup_source=grant.lookup_source if grant else "lookup",
            ruled=request.ruled,
            prompt_targets=request.prompt_targets(start, end),
            draft_start=request.num_draft_computed_tokens,
            catchup_token_ids=request.token_ids[request.num_draft_computed_tokens :] if drafts else (),
        )

    # -- results --------------------------------------------------------------------------------------------------

    def update(self, plan: SchedulerOutput, result: ModelRunnerOutput) -> StepOutput:
        """Commit what the step brought, end what has come to its end, and tell the policy."""
        tally = StepTally(plan, result)
        outputs: list[RequestOutput] = []
        for scheduled in plan.scheduled:
            request = self._requests[scheduled.request_id]
            request.num_computed_tokens = scheduled.start + len(scheduled.token_ids)
            if scheduled.prompt_targets:
                request.prompt_logprobs += result.prompt_logprobs[scheduled.request_id]
            if scheduled.samples:
                outputs.append(self._commit(request, scheduled, result, tally))
        self._policy.observe(tally.outcome())
        # Only now: the policy must not be told of a request's end before of its last step.
        for output in outputs:
            if output.finish_reason is not None:
                self._release(self._requests[output.request_id], output.finish_reason)
        self.running = [request for request in self.running if request.status is RequestStatus.RUNNING]
        stats = tally.stats(len(self.running), len(self.waiting), self.pool.usage)
        return StepOutput(tuple(outputs), stats, plan.first_scheduled)

    def _commit(
        self, request: Request, scheduled: ScheduledRequest, result: ModelRunnerOutput, tally: StepTally
    ) -> RequestOutput:
        """Take over sampled tokens one by one until one of them ends the request; the rest never was."""
        sampled = result.sampled[request.request_id]
        reason: FinishReason | None = None
        num_kept = 0
        for token_id in sampled.token_ids:
            request.token_ids.append(token_id)
            num_kept += 1
            reason = finish_reason_at(request, token_id, self.max_model_len)
            if reason is not None:
                break
        # All tokens but the newest have their KV: accepted nodes were computed as part of the step.
        request.num_computed_tokens = request.num_tokens - 1
        drafted_to = result.num_draft_computed.get(request.request_id)
        if drafted_to is not None:
            self._prefixes.set_draft_progress(request, min(drafted_to, request.num_tokens - 1))
        self._prefixes.publish(request, request.num_computed_tokens)
        tally.count(scheduled, sampled, num_kept)
        if scheduled.lookup_source == "prediction" and sampled.num_drafted:
            request.num_prediction_accepted += min(sampled.num_accepted, num_kept)
            request.num_prediction_rejected += sampled.num_drafted - sampled.num_accepted
        self.waiting.charge(request, generated_tokens=num_kept)
        self.pool.shrink(request.block_table, request.num_tokens)
        return RequestOutput(
            request_id=request.request_id,
            new_token_ids=sampled.token_ids[:num_kept],
            logprobs=sampled.logprobs[:num_kept],
            prompt_logprobs=() if scheduled.num_output_tokens else tuple(request.prompt_logprobs),
            finish_reason=reason,
            num_drafted=sampled.num_drafted,
            num_accepted=min(sampled.num_accepted, num_kept),
            proposer=scheduled.source if sampled.num_drafted else None,
        )

    def _release(self, request: Request, reason: FinishReason) -> None:
        """Give back all a request holds; taking it out of `running` or `waiting` is the caller's part."""
        self._prefixes.drop(request)
        request.status, request.finish_reason = RequestStatus.FINISHED, reason
        del self._requests[request.request_id]
        self._speculation.forget(request.request_id)
        self._policy.forget(request.request_id)
        if not self._requests:
            self.waiting.forget_the_past()
