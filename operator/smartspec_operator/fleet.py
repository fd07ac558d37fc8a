"""The reports of all replicas as one: sums, merged histograms, and what the fleet has learned together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from smartspec.metrics import Histogram
from smartspec.policy.capacity import RequestLengths
from smartspec.policy.latency import model_of
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import AcceptancePrior, LatencyPrior, Priors
from smartspec.policy.types import StepFeatures

TYPICAL_STEPS = tuple(
    StepFeatures(target_tokens=4 * n, context_tokens=256 * n, num_requests=n, draft_batch_by_depth=(n,) * 3)
    for n in (1, 8, 64)
)
"""Steps by which two time models are compared: their coefficients trade places without their predictions changing."""
MIN_SHARING, LEAST_KV_SHARE = 4, 0.1
"""Sharing is measured over so many running requests or more, and never believed to save more than all but this."""
TIME_CHANGE, RATE_CHANGE = 0.15, 0.1
"""What is learned is written down again when predicted times move by this share, or acceptance by so much."""


@dataclass(frozen=True)
class Fleet:
    """Rates are sums over replicas, `lengths` are weighted by requests, speculation by generated tokens.

    KV memory is that of the replica which is worst off: the usage of the fullest, the tokens of the smallest.
    `kv_tokens_per_context_token` is below 1 where requests share prefixes, for these are in memory once.
    """

    size: int
    requests_per_second: float
    recent_requests_per_second: float
    tokens_per_second: float
    lengths: RequestLengths
    running: int
    waiting: int
    longest_wait_seconds: float
    kv_cache_usage: float
    kv_cache_tokens: int
    kv_tokens_per_context_token: float
    ttft: Histogram
    tpot: Histogram
    mean_k: float
    acceptance_rate: float
    predicted_goodput: float
    measured_goodput: float

    @property
    def demand_tokens_per_second(self) -> float:
        """Tokens that arriving requests ask for each second; never less than what is being generated."""
        return max(self.tokens_per_second, self.requests_per_second * self.lengths.output_tokens)


def together(loads: Sequence[LoadReport]) -> Fleet:
    """All reports as one; zeros for none."""
    arrivals = [load.shape.requests_per_second for load in loads]
    tokens = [load.shape.generation_tokens_per_second for load in loads]
    # Before anything has finished, what requests ask for is the best guess of what they will generate.
    lengths = [load.shape.mean_generation_tokens or load.shape.mean_requested_tokens for load in loads]
    return Fleet(
        size=len(loads),
        requests_per_second=sum(arrivals),
        recent_requests_per_second=sum(load.shape.recent_requests_per_second for load in loads),
        tokens_per_second=sum(tokens),
        lengths=RequestLengths(
            prompt_tokens=_mean([load.shape.mean_prompt_tokens for load in loads], arrivals),
            output_tokens=_mean(lengths, arrivals),
            cached_share=_mean([load.shape.prefix_hit_share for load in loads], arrivals),
        ),
        running=sum(load.num_requests_running for load in loads),
        waiting=sum(load.num_requests_waiting for load in loads),
        longest_wait_seconds=max((load.longest_wait_seconds for load in loads), default=0.0),
        kv_cache_usage=max((load.kv_cache_usage for load in loads), default=0.0),
        kv_cache_tokens=min((load.kv_cache_tokens for load in loads), default=0),
        kv_tokens_per_context_token=max((_kv_per_context(load) for load in loads), default=1.0),
        ttft=reduce(Histogram.merged, (load.ttft for load in loads), Histogram()),
        tpot=reduce(Histogram.merged, (load.tpot for load in loads), Histogram()),
        mean_k=_mean([load.speculation.mean_k for load in loads], tokens),
        acceptance_rate=_mean([load.speculation.acceptance_rate for load in loads], tokens),
        predicted_goodput=sum(load.speculation.predicted_goodput for load in loads),
        measured_goodput=sum(load.speculation.measured_goodput for load in loads),
    )


@dataclass(frozen=True)
class Attainment:
    """The share, from 0 to 1, of so many requests that are within one objective."""

    share: float
    requests: int


def attainments(fleet: Fleet, ttft_seconds: float | None, tpot_seconds: float | None) -> tuple[Attainment, ...]:
    """One for each objective that is given and that requests tell of."""
    bounds = ((fleet.ttft, ttft_seconds), (fleet.tpot, tpot_seconds))
    shares = [(seen, seen.share_within(bound)) for seen, bound in bounds if bound is not None]
    return tuple(Attainment(share, seen.total) for seen, share in shares if share is not None)


def attainment(fleet: Fleet, ttft_seconds: float | None, tpot_seconds: float | None) -> float | None:
    """The share of requests within the objective missed most; None without an objective or without requests."""
    return min((found.share for found in attainments(fleet, ttft_seconds, tpot_seconds)), default=None)


def merged_priors(all_priors: Iterable[Priors | None]) -> Priors | None:
    """What the fleet has learned: means weighted by evidence, for the key with the most of it.

    Replicas were seeded by each other, so their evidence overlaps: the merged weight is the largest one, not the sum,
    or a fleet would grow certain by talking to itself.
    """
    by_key: dict[str, list[Priors]] = {}
    for priors in all_priors:
        if priors is not None and priors.latency is not None and priors.latency.weight > 0:
            by_key.setdefault(priors.key, []).append(priors)
    if not by_key:
        return None
    key = max(sorted(by_key), key=lambda k: sum(p.latency.weight for p in by_key[k] if p.latency is not None))
    known = by_key[key]
    kinds = sorted({(a.proposer, a.verifier) for priors in known for a in priors.acceptance})
    return Priors(
        key=key,
        latency=_merged_latency([priors.latency for priors in known if priors.latency is not None]),
        acceptance=tuple(
            _merged_acceptance([a for p in known for a in p.acceptance if (a.proposer, a.verifier) == kind])
            for kind in kinds
        ),
    )


def differ(old: Priors | None, new: Priors | None) -> bool:
    """Whether *new* is worth writing down: more than noise away from *old*, or resting on twice the evidence."""
    if new is None or old is None or old.key != new.key:
        return new is not None
    assert old.latency is not None and new.latency is not None  # noqa: PT018  merged_priors keeps no other
    if new.latency.weight >= 2 * old.latency.weight or len(old.acceptance) != len(new.acceptance):
        return True
    before, after = model_of(old.latency), model_of(new.latency)
    for step in TYPICAL_STEPS:
        a, b = before.predict(step).total, after.predict(step).total
        if abs(a - b) > TIME_CHANGE * max(a, b):
            return True
    return any(
        abs(a - b) > RATE_CHANGE
        for before, after in zip(old.acceptance, new.acceptance, strict=True)
        for a, b in zip(before.rates[:1], after.rates[:1], strict=False)
    )


def _kv_per_context(load: LoadReport) -> float:
    """KV memory in use for each token of the running requests' contexts; 1 where too few run to tell."""
    if load.num_requests_running < MIN_SHARING or load.num_context_tokens == 0:
        return 1.0
    used = load.kv_cache_usage * load.kv_cache_tokens
    return min(1.0, max(LEAST_KV_SHARE, used / load.num_context_tokens))


def _merged_latency(known: Sequence[LatencyPrior]) -> LatencyPrior:
    weights = [prior.weight for prior in known]
    names = sorted({name for prior in known for name in prior.coefficients})
    return LatencyPrior(
        coefficients={name: _mean([p.coefficients.get(name, 0.0) for p in known], weights) for name in names},
        weight=max(weights),
        relative_error=_mean([prior.relative_error for prior in known], weights),
    )


def _merged_acceptance(known: Sequence[AcceptancePrior]) -> AcceptancePrior:
    depth = max(len(prior.rates) for prior in known)
    at = [[(p.rates[i], p.weights[i]) for p in known if i < len(p.rates)] for i in range(depth)]
    return AcceptancePrior(
        proposer=known[0].proposer,
        verifier=known[0].verifier,
        rates=tuple(_mean([rate for rate, _ in pairs], [weight for _, weight in pairs]) for pairs in at),
        weights=tuple(max(weight for _, weight in pairs) for pairs in at),
    )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted mean; the plain one where nothing has weight; 0 for nothing."""
    total = sum(weights)
    if total > 0:
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    return sum(values) / len(values) if values else 0.0
