"""What one replica can carry within the objectives, by the same goodput model that the runtime itself uses."""

from collections.abc import Iterator
from dataclasses import dataclass

from smartspec.policy.latency import LatencyModel, model_of
from smartspec.policy.settings import AcceptancePrior, Priors
from smartspec.policy.types import StepFeatures
from smartspec_operator.world import Shape


@dataclass(frozen=True)
class Capacity:
    """Generated tokens per second of one replica, and how many requests may run at once within the TPOT bound.

    `running_requests` is None when the bound is out of reach: a single request is too slow already.
    """

    tokens_per_second: float
    running_requests: int | None


def capacity(
    priors: Priors | None,
    shape: Shape,
    *,
    max_running_requests: int,
    max_speculative_tokens: int,
    tpot_seconds: float | None,
) -> Capacity | None:
    """The most tokens per second over batch sizes and speculation lengths whose TPOT stays within *tpot_seconds*.

    None without a time model. When even one request alone is too slow, its speed is all there is: capacity is never 0,
    because a replica always serves. Prefill of arriving requests takes its share of every step: speculation speeds up
    decoding only.
    """
    if priors is None or priors.latency is None or shape.generation_tokens <= 0:
        return None
    model = model_of(priors.latency)
    options = [
        (tokens / seconds, seconds * running / tokens, running)
        for running in _batch_sizes(max_running_requests)
        for tokens, seconds in _steps(model, _survival(priors, max_speculative_tokens), shape, running)
        if seconds > 0
    ]
    if not options:
        return None
    within = [option for option in options if tpot_seconds is None or option[1] <= tpot_seconds]
    if not within:
        return Capacity(min(options, key=lambda option: option[1])[0], None)
    return Capacity(max(within)[0], max(running for _, _, running in within))


def _steps(model: LatencyModel, survival: list[float], shape: Shape, running: int) -> Iterator[tuple[float, float]]:
    """Tokens kept and seconds taken by a step of *running* requests, for every speculation length."""
    context = round(running * (shape.prompt_tokens + shape.generation_tokens / 2))
    for k in range(len(survival) + 1):
        tokens = running * (1.0 + sum(survival[:k]))
        prefill = round(tokens / shape.generation_tokens * shape.prompt_tokens)
        features = StepFeatures(
            target_tokens=running * (k + 1) + prefill,
            context_tokens=context,
            num_requests=running,
            prefill_tokens=prefill,
            draft_batch_by_depth=(running,) * k,
            draft_context_tokens=context * k,
        )
        yield tokens, model.predict(features).total


def _survival(priors: Priors, depth: int) -> list[float]:
    """The chance that position j is kept, by the draft model's best-known verifier; empty when nothing drafts."""
    drafts = [prior for prior in priors.acceptance if prior.proposer == "draft"]
    best: AcceptancePrior | None = max(drafts, key=lambda prior: sum(prior.weights), default=None)
    survival: list[float] = []
    for rate in best.rates[:depth] if best is not None else ():
        survival.append(rate * (survival[-1] if survival else 1.0))
    return survival


def _batch_sizes(largest: int) -> list[int]:
    """1, 2, 3, ... growing by a tenth: fine enough for a rate, few enough for every tick."""
    sizes, size = [], 1.0
    while size < largest:
        sizes.append(round(size))
        size = max(size + 1, size * 1.1)
    return [*sizes, largest]
