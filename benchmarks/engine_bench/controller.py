"""Section controller: microseconds of the policy alone, beside the step that it decides about."""

import random
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from engine_bench.bench import Bench, of_section, segments
from engine_bench.report import Check, Part, milliseconds
from engine_bench.timing import Contender, alternate
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import BatchState, Candidate, Decision, RequestOutcome, StepFeatures, StepOutcome
from smartspec.policy.types import StepSeconds as Seconds

REQUESTS = (1, 16, 64, 256)
CEILING = 8
CONTEXT = 128
PASSES = 5
MOST_MICROSECONDS = 400.0
MOST_SHARE = 0.01
ACCEPTANCE = 0.75


def measure(bench: Bench) -> None:
    """Rounds of decide and observe on invented batches, by a policy that knows this machine's times; then the target's
    forward of as many rows as it chose. In several passes over all sizes: one burst of somebody else's would else
    decide what a size takes."""
    target = bench.filled
    known = bench.engine(PolicySettings(policy="request", max_speculative_tokens=CEILING), warm=True).policy.priors()
    settings = PolicySettings(policy="request", max_speculative_tokens=CEILING, priors=known)
    policies = {num: SpeculationPolicy(settings, key=known.key) for num in REQUESTS}
    found: dict[int, list[tuple[float, float, float]]] = {num: [] for num in REQUESTS}
    for turn in range(PASSES):
        for num, policy in policies.items():
            found[num] += zip(*rounds(policy, num, 60 // (PASSES if bench.is_quick else 1), seed=turn), strict=True)
    for num in REQUESTS:
        decide, observe, ks = zip(*found[num], strict=True)
        most = sorted(ks)[len(ks) // 2]
        # Even a step at the policy's middle k, without its draft, is what the policy's time is held against.
        counts = np.full(num, int(most))
        ours = segments([CONTEXT] * num, int(counts[0]) + 1, target.block_size, target.vocab_size)
        forward = alternate({"": Contender(lambda ours=ours: target.forward(ours))}, seconds=bench.seconds(1.5))  # type: ignore[misc]
        bench.add(
            "controller", f"{num} requests", requests=num, decide=median(decide), observe=median(observe),
            both=median([a + b for a, b in zip(decide, observe, strict=True)]),
            decide_95=float(np.quantile(decide, 0.95)), observe_95=float(np.quantile(observe, 0.95)),
            k=float(np.mean(ks)), rows=int(counts.sum()) + num, step=median(forward[""]),
        )  # fmt: skip


def rounds(
    policy: SpeculationPolicy, num: int, count: int, seed: int = 0
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of decide and of observe, and the mean k, of *count* steps of *num* requests, after a few that do not
    count. Every third request has something to copy; contexts grow as if text came."""
    chance = random.Random(seed)
    contexts = [chance.randint(CONTEXT // 2, 2 * CONTEXT) for _ in range(num)]
    decide, observe, ks = [], [], []
    for turn in range(-5, count):
        batch = _batch(contexts, chance)
        began = time.perf_counter()
        decision = policy.decide(batch)
        decided = time.perf_counter()
        outcome, kept = _outcome(batch, decision, chance)
        told = time.perf_counter()
        policy.observe(outcome)
        ended = time.perf_counter()
        contexts = [context + more for context, more in zip(contexts, kept, strict=True)]
        if turn >= 0:
            decide.append(decided - began)
            observe.append(ended - told)
            ks.append(sum(choice.num_tokens for choice in decision.choices.values()) / num)
    return decide, observe, ks


def _batch(contexts: Sequence[int], chance: random.Random) -> BatchState:
    candidates = []
    for index, context in enumerate(contexts):
        match = chance.randint(2, 6) if index % 3 == 0 else 0
        candidates.append(
            Candidate(
                f"request-{index}", context, CEILING, "greedy", draft_lag_tokens=chance.randint(1, 2),
                lookup_tokens=CEILING if match else 0, lookup_match_tokens=match,
            )
        )  # fmt: skip
    return BatchState(tuple(candidates), max_nodes=2048 - len(contexts))


def _outcome(batch: BatchState, decision: Decision, chance: random.Random) -> tuple[StepOutcome, list[int]]:
    """A step as it may go: geometric acceptance, and the time that was predicted, give or take a twentieth."""
    outcomes, kept = [], []
    for candidate in batch.candidates:
        choice, accepted = decision.choices.get(candidate.request_id), 0
        if choice is not None:
            while accepted < choice.num_tokens and chance.random() < ACCEPTANCE:
                accepted += 1
            outcomes.append(
                RequestOutcome(
                    candidate.request_id, choice.proposer, candidate.verifier, choice.num_tokens, accepted,
                    candidate.lookup_match_tokens if choice.proposer == "lookup" else 0,
                )
            )  # fmt: skip
        kept.append(accepted + 1)
    lengths = [choice.num_tokens for choice in decision.choices.values() if choice.proposer == "draft"]
    by_depth = tuple(sum(length > depth for length in lengths) for depth in range(max(lengths, default=0)))
    context = sum(candidate.context_tokens for candidate in batch.candidates)
    nodes = sum(choice.num_tokens for choice in decision.choices.values())
    features = StepFeatures(
        target_tokens=len(batch.candidates) + nodes,
        context_tokens=context,
        num_requests=len(batch.candidates),
        draft_batch_by_depth=by_depth,
        draft_context_tokens=context * len(by_depth),
        catchup_tokens=2 * len(lengths),
    )
    seconds = decision.predicted_seconds * chance.uniform(0.95, 1.05)
    draft = 0.2 * seconds if by_depth else 0.0
    times = Seconds(draft=draft, target=0.97 * seconds - draft, host=0.03 * seconds)
    return StepOutcome(decision, features, times, tuple(outcomes), sum(kept)), kept


def part(runs: Sequence[Mapping[str, Any]]) -> Part:
    """The table, and both targets."""
    rows, checks = [], []
    for run in of_section(runs, "controller"):
        share = run["both"] / run["step"]
        rows.append(
            [
                f"{run['requests']}",
                *(f"{1e6 * run[name]:.0f}" for name in ("decide", "observe", "both", "decide_95", "observe_95")),
                f"{run['k']:.1f}",
                f"{run['rows']}",
                milliseconds(run["step"]),
                f"{share:.2%}",
            ]
        )
        num = run["requests"]
        if num == max(REQUESTS):
            checks.append(Check(f"microseconds at {num} requests", 1e6 * run["both"], MOST_MICROSECONDS))
        checks.append(Check(f"share of the step at {num} requests", share, MOST_SHARE, f"{share:.2%}"))
    return Part(
        "The controller",
        (
            "Microseconds of `SpeculationPolicy.decide` and `observe` (medians, then 95th percentiles), ceiling K = "
            f"{CEILING}"
            ", every request can draft and every third has a match to copy; beside them the target's forward alone of "
            "the "
            "step at the middle k chosen."
        ),
        ("requests", "decide", "observe", "both", "decide 95", "observe 95", "mean k", "rows", "step ms", "share"),
        rows,
        checks,
    )
