"""How long forwards take and how often proposals are accepted here, and what the policy makes of it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from smartspec.async_engine.thread import LoadedEngine
from smartspec.composition import assemble
from smartspec.execution.batch import Segment
from smartspec.execution.loader import Model
from smartspec.execution.proposers import Drafts
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import AcceptancePrior, PolicySettings, Priors
from smartspec.policy.types import BatchState, Candidate, Proposer, Verifier
from smartspec.scheduling.request import Request, SamplingParams
from smartspec.selftest.report import Acceptance, Choice, CurvePoint
from smartspec.selftest.runs import Served, fixed

CONTEXT_TOKENS = 64
MOST_FORWARD_SECONDS = 3.0
"""A curve ends where a forward takes longer than this."""
DEPTHS = (0, 4, 8, 1, 0, 4, 8, 2, 0, 8)
"""The k of a batch's steps, in order."""
LOOKUP_TOKENS = 8
LOOKUP_MATCH_TOKENS = 4
VERIFIERS: tuple[Verifier, ...] = ("greedy", "rejection")


def curve(served: Served, sizes: Sequence[int]) -> list[CurvePoint]:
    """One forward over each of *sizes*, a token from each of as many requests."""
    model, found = served.model, []
    for size in sizes:
        target = _forward_seconds(model.target, size)
        draft = None if model.draft is None else _forward_seconds(model.draft, size)
        found.append(CurvePoint(size, target, draft))
        if target > MOST_FORWARD_SECONDS:
            break
    return found


def _forward_seconds(model: Model, size: int) -> float:
    blocks_each = CONTEXT_TOKENS // model.block_size + 1
    rooms = max(1, model.num_blocks // blocks_each)
    rows = [(i % model.vocab_size, i % rooms * blocks_each) for i in range(size)]
    segments = [Segment([token], CONTEXT_TOKENS, range(block, block + blocks_each), 1) for token, block in rows]
    model.forward(segments)  # the first of a size may compile, or touch memory for the first time
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 0.15):
        began = time.perf_counter()
        model.forward(segments)
        times.append(time.perf_counter() - began)
        if sum(times) > MOST_FORWARD_SECONDS:
            break
    return median(times)


@dataclass
class Trials:
    """Proposals of one proposer and verifier: how many came to each position, and were accepted there."""

    tried: list[int] = field(default_factory=lambda: [0] * 32)
    accepted: list[int] = field(default_factory=lambda: [0] * 32)
    steps: int = 0
    offered: int = 0

    def add(self, num_drafted: int, num_accepted: int) -> None:
        """One step of one request that was free to speculate."""
        self.steps += 1
        self.offered += num_drafted > 0
        for position in range(min(num_accepted + 1, num_drafted)):
            self.tried[position] += 1
            self.accepted[position] += position < num_accepted


@dataclass
class Rehearsal:
    """What was learned: the time model by the policy itself, acceptance by counting."""

    priors: Priors
    time_error: float
    acceptance: list[Acceptance]
    largest: int

    def choices(self, sizes: Sequence[int], key: str, depth: int) -> Iterator[Choice]:
        """What the policy would choose for batches of each of *sizes*."""
        offered = {row.verifier: row.offered for row in self.acceptance if row.proposer == "lookup"}
        drafts = any(row.proposer == "draft" for row in self.acceptance)
        priors = _with_acceptance(self.priors, self.acceptance)
        for size in sizes:
            for verifier in VERIFIERS:
                # A policy of its own for each question: none remembers the last one, or would probe.
                policy = SpeculationPolicy(PolicySettings(max_speculative_tokens=depth, priors=priors), key=key)
                matched = round(offered.get(verifier, 0.0) * size)
                batch = BatchState(
                    tuple(
                        Candidate(
                            request_id=str(i),
                            context_tokens=4 * CONTEXT_TOKENS,
                            max_speculative_tokens=depth,
                            verifier=verifier,
                            draft_lag_tokens=1 if drafts else None,
                            lookup_tokens=LOOKUP_TOKENS if i < matched else 0,
                            lookup_match_tokens=LOOKUP_MATCH_TOKENS if i < matched else 0,
                        )
                        for i in range(size)
                    )
                )
                decision = policy.decide(batch)
                plain = size / max(decision.baseline_seconds, 1e-9)
                yield Choice(
                    requests=size,
                    verifier=verifier,
                    mean_k=sum(c.num_tokens for c in decision.choices.values()) / size,
                    step_seconds=decision.predicted_seconds,
                    tokens_per_second=decision.predicted_goodput,
                    plain_tokens_per_second=plain,
                    gain=decision.predicted_goodput / plain - 1.0,
                    measured=size <= self.largest,
                )


def _with_acceptance(priors: Priors, acceptance: Sequence[Acceptance]) -> Priors:
    """*priors* with what was counted in place of what has faded."""
    return Priors(
        key=priors.key,
        latency=priors.latency,
        acceptance=tuple(
            AcceptancePrior(row.proposer, row.verifier, row.rates, tuple(float(n) for n in row.trials))
            for row in acceptance
            if row.rates
        ),
    )


def rehearse(
    served: Served, prompts: Sequence[Sequence[int]], sizes: Sequence[int], seconds: float, say: Callable[[str], None]
) -> Rehearsal:
    """Run batches of each of *sizes* of real text at several k, as long as *seconds* last; the policy learns from it
    as it would in service. Half of the requests are greedy, half sampled."""
    trials: dict[tuple[Proposer, Verifier], Trials] = defaultdict(Trials)
    proposers = served.model.proposers
    began, largest = time.perf_counter(), 0
    drafts = "draft" in proposers
    main = served.with_proposers("draft") if drafts else served.with_proposers()
    scheduler = replace(main.config.scheduler, max_num_seqs=max(sizes), prefix_caching=False)
    loaded = assemble(main.model, replace(main.config, scheduler=scheduler), fixed(0), time.perf_counter)
    for size in sizes:
        spent = time.perf_counter() - began
        if largest and spent * 2 > seconds:  # each batch takes as long as all before it, or longer
            break
        say(f"{size} requests")
        _batch(loaded, prompts, size, DEPTHS if drafts else (0,) * len(DEPTHS), trials, "draft")
        largest = size
    if "lookup" in proposers:
        alone = served.with_proposers("lookup")
        looking = assemble(alone.model, alone.config, fixed(0), time.perf_counter)
        size = min(16, max(sizes), 2 * len(prompts))
        say("prompt lookup")
        depths = (LOOKUP_TOKENS,) * (len(DEPTHS) * 2)
        _batch(looking, prompts, size, depths, trials, "lookup")
    priors = loaded.policy.priors()
    return Rehearsal(
        priors=priors,
        time_error=priors.latency.relative_error if priors.latency is not None else 0.0,
        acceptance=[_row(proposer, verifier, counted) for (proposer, verifier), counted in sorted(trials.items())],
        largest=largest,
    )


def _batch(
    loaded: LoadedEngine[Drafts],
    prompts: Sequence[Sequence[int]],
    size: int,
    depths: Sequence[int],
    trials: dict[tuple[Proposer, Verifier], Trials],
    proposer: Proposer,
) -> None:
    """One batch: its prompts, then a step at each k, whose proposals are counted."""
    scheduler = loaded.engine.scheduler
    max_tokens = min(2 + sum(k + 1 for k in depths), scheduler.max_model_len // 2)
    longest = scheduler.max_model_len - max_tokens
    verifiers: dict[str, Verifier] = {}
    for i in range(size):
        request_id, verifier = str(i), VERIFIERS[i % len(VERIFIERS)]
        sampling = SamplingParams(max_tokens=max_tokens, temperature=float(verifier != "greedy"), ignore_eos=True)
        prompt = list(prompts[i // len(VERIFIERS) % len(prompts)])[-longest:]
        scheduler.add(Request(request_id, prompt, sampling, noise_seed=i, arrival_time=0.0, verifier=verifier))
        verifiers[request_id] = verifier
    loaded.policy.apply(fixed(0))
    while scheduler.waiting or any(request.num_remaining_tokens > 1 for request in scheduler.running):
        loaded.engine.step()
    for k in depths:
        loaded.policy.apply(fixed(k))
        for output in loaded.engine.step().outputs:
            if k and output.finish_reason is None:  # an end cuts a proposal short
                trials[proposer, verifiers[output.request_id]].add(output.num_drafted, output.num_accepted)
    for request_id in verifiers:
        scheduler.abort(request_id)


def _row(proposer: Proposer, verifier: Verifier, counted: Trials) -> Acceptance:
    known = sum(1 for n in counted.tried if n)
    return Acceptance(
        proposer,
        verifier,
        tuple(a / n for a, n in zip(counted.accepted[:known], counted.tried[:known], strict=True)),
        tuple(counted.tried[:known]),
        counted.offered / counted.steps if counted.steps else 0.0,
    )
