"""What a replica can carry: predicted TPOT, TTFT and throughput at a concurrency, and the most within targets.

Pure functions of what the fleet has learned (`Priors`) and of the requests' shape, from the same models that choose k
at every step, so that a decision to scale and a decision to speculate never contradict each other. They describe a
steady state: n requests decode, each with the k that serves the whole best, and every output token brings its share
of prefill work with it (speculation makes decoding cheaper, never prefill).
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from smartspec.policy.latency import LatencyModel, model_of
from smartspec.policy.regression import Array, Ints
from smartspec.policy.settings import AcceptancePrior, Priors

MOST_CONCURRENCY = 4096
AT_ONCE = 16
"""Concurrencies that are looked at together, where the greatest within a target is sought."""


@dataclass(frozen=True, slots=True)
class RequestLengths:
    """Mean prompt and output of the requests, in tokens; `cached_share` of the prompts was computed before."""

    prompt_tokens: float
    output_tokens: float
    cached_share: float = 0.0

    @property
    def prefill_tokens(self) -> float:
        """Prompt tokens to be computed for a request."""
        return self.prompt_tokens * (1.0 - self.cached_share)

    @property
    def mean_context_tokens(self) -> float:
        """What a decoding request attends to on average over its life."""
        return self.prompt_tokens + self.output_tokens / 2

    @property
    def prefill_per_token(self) -> float:
        """Prompt tokens to be computed for every token put out."""
        return self.prefill_tokens / max(1.0, self.output_tokens)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A replica at `concurrency` running requests that all speculate `num_speculative_tokens`.

    `ttft_seconds` is without queueing. `meets_targets` is False when the point is only the nearest to the targets.
    """

    concurrency: int
    num_speculative_tokens: int
    mean_tokens_per_step: float
    tpot_seconds: float
    ttft_seconds: float
    tokens_per_second: float
    requests_per_second: float
    meets_targets: bool = True


@dataclass(frozen=True)
class SteadyState:
    """A replica in a steady state, for any concurrency: the models' answer before targets are asked about.

    `survival` [K] is the mean probability that the first tokens up to each position are kept (empty: no draft).
    """

    latency: LatencyModel
    survival: Array
    context_tokens: float
    prefill_per_token: float
    chunk_tokens: int

    @property
    def tokens_per_step(self) -> Array:
        """Tokens kept per request and step for each k from 0 to K."""
        return 1.0 + np.concatenate(([0.0], np.cumsum(self.survival)))

    def step_seconds(self, concurrency: int | Ints, prefill_tokens: int | Ints = 0) -> Array:
        """Seconds of one step for each k from 0 to K in the last axis, with *prefill_tokens* in the same step. The axes
        of one of the two, where that is an array, go before."""
        depths = np.arange(len(self.survival) + 1)
        prefill, running = np.asarray(prefill_tokens)[..., None], np.asarray(concurrency)[..., None]
        context = np.rint(running * self.context_tokens)
        target = self.latency.target_curve(
            running * (depths + 1) + prefill, context=context, requests=running, prefill=prefill
        )
        forward = self.latency.draft_curve(running)
        seconds: Array = target + depths * (forward + self.latency.draft_context_seconds * context)
        return seconds

    def tpot_seconds(self, concurrency: int | Ints) -> Array:
        """Seconds per output token for each k in the last axis, the prefill work that output brings in included."""
        chunk = max(1, self.chunk_tokens)
        decode = self.step_seconds(concurrency)
        per_prefill_token = (self.step_seconds(concurrency, chunk) - decode) / chunk
        running = np.asarray(concurrency)[..., None]
        tpot: Array = decode / self.tokens_per_step + running * self.prefill_per_token * per_prefill_token
        return tpot

    def most_within(self, tpot_target_seconds: float) -> int:
        """The greatest concurrency whose TPOT at the best k keeps the target; 0 when none does."""
        low, high = 0, MOST_CONCURRENCY + 1
        while (
            high - low > 1
        ):  # more requests never make a step shorter, so that looking at a few at once finds the edge
            tried = np.unique(np.linspace(low + 1, high - 1, AT_ONCE).astype(np.intp))
            keep = self.tpot_seconds(tried).min(axis=-1) <= tpot_target_seconds
            first = len(tried) if keep.all() else int(keep.argmin())
            low, high = int(tried[first - 1]) if first else low, int(tried[first]) if first < len(tried) else high
        return low


def operating_point(
    priors: Priors,
    lengths: RequestLengths,
    concurrency: int,
    *,
    max_speculative_tokens: int = 8,
    max_prefill_tokens: int = 512,
) -> OperatingPoint:
    """What to expect at *concurrency* running requests; raises ValueError when `priors` hold no time model.

    Only the draft model's speculation is counted: how often prompt lookup finds a match is not known in advance.
    """
    state = _steady_state(priors, lengths, max_speculative_tokens, max_prefill_tokens)
    return _point(state, lengths, concurrency)


def capacity(
    priors: Priors,
    lengths: RequestLengths,
    *,
    max_running_requests: int,
    tpot_target_seconds: float | None = None,
    ttft_target_seconds: float | None = None,
    max_speculative_tokens: int = 8,
    max_prefill_tokens: int = 512,
) -> OperatingPoint:
    """The point of greatest throughput within the targets at up to *max_running_requests*; where no concurrency meets
    them, the point of one request, marked. Raises ValueError when `priors` hold no time model."""
    state = _steady_state(priors, lengths, max_speculative_tokens, max_prefill_tokens)
    tpot_target = math.inf if tpot_target_seconds is None else tpot_target_seconds
    ttft_target = math.inf if ttft_target_seconds is None else ttft_target_seconds
    numbers = np.array(_concurrencies(max_running_requests))
    tpot = state.tpot_seconds(numbers).min(axis=1)
    meets = tpot <= tpot_target
    if ttft_target < math.inf:
        meets &= [_point(state, lengths, int(number)).ttft_seconds <= ttft_target for number in numbers]
    if not meets.any():
        return replace(_point(state, lengths, 1), meets_targets=False)
    return _point(state, lengths, int(numbers[np.where(meets, numbers / tpot, 0.0).argmax()]))


def _concurrencies(most: int) -> list[int]:
    """Every concurrency up to 64, then ever coarser steps of about 3 %, and *most* itself."""
    found = list(range(1, min(most, 64) + 1))
    while found[-1] < most:
        found.append(min(most, math.ceil(found[-1] * 1.03)))
    return found


def _point(state: SteadyState, lengths: RequestLengths, concurrency: int) -> OperatingPoint:
    tpots = state.tpot_seconds(concurrency)
    k = int(tpots.argmin())
    tpot, tokens = float(tpots[k]), float(state.tokens_per_step[k])
    throughput = concurrency / tpot
    chunk = max(1, min(state.chunk_tokens, round(lengths.prefill_tokens)))
    with_chunk = float(state.step_seconds(concurrency, chunk)[k])
    decode = float(state.step_seconds(concurrency)[k])
    # A newcomer waits for half a step, then its chunks take turns with those of others, who fill this share of time.
    prefill_share = max(0.0, 1.0 - decode / (tpot * tokens))
    chunks = math.ceil(max(1.0, lengths.prefill_tokens) / chunk)
    ttft = decode / 2 + chunks * with_chunk / max(0.05, 1.0 - prefill_share)
    return OperatingPoint(
        concurrency=concurrency,
        num_speculative_tokens=k,
        mean_tokens_per_step=tokens,
        tpot_seconds=tpot,
        ttft_seconds=ttft,
        tokens_per_second=throughput,
        requests_per_second=throughput / max(1.0, lengths.output_tokens),
    )


def _steady_state(
    priors: Priors, lengths: RequestLengths, max_speculative_tokens: int, max_prefill_tokens: int
) -> SteadyState:
    if priors.latency is None:
        raise ValueError("priors.latency is missing: nothing is known of how long steps take")
    drafts = [p for p in priors.acceptance if p.proposer == "draft" and p.rates]
    return SteadyState(
        latency=model_of(priors.latency),
        survival=mean_survival(drafts, max_speculative_tokens),
        context_tokens=lengths.mean_context_tokens,
        prefill_per_token=lengths.prefill_per_token,
        chunk_tokens=min(max_prefill_tokens, max(1, round(lengths.prefill_tokens))),
    )


def mean_survival(drafts: list[AcceptancePrior], depth: int) -> Array:
    """Survival [depth] of drafted tokens, verifiers mixed as they were met; positions nobody reached are taken to be
    like the last one reached. Empty where nothing was ever drafted."""
    if not drafts:
        return np.empty(0)
    rates: Array = np.zeros(depth)
    weights: Array = np.zeros(depth)
    for prior in drafts:
        for position in range(depth):
            known = min(position, len(prior.rates) - 1)
            rates[position] += prior.weights[0] * prior.rates[known]
            weights[position] += prior.weights[0]
    return np.asarray(np.cumprod(rates / np.maximum(weights, 1e-9)), dtype=np.float64)
