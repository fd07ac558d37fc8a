"""What a replica can carry: predicted from priors, checked against simulated replicas."""

import pytest

from smartspec.policy.capacity import RequestLengths, capacity, operating_point
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import AcceptancePrior, LatencyPrior, PolicySettings, Priors
from smartspec.policy.simulate import Replica, Trace, run_closed
from smartspec.policy.worlds import Device, Shape, Texts

LENGTHS = RequestLengths(prompt_tokens=48, output_tokens=96)
QUIET = Device(noise=0.02, straggler_share=0.0)


def measure(num: int, priors: Priors | None = None, *, until: float = 16.0) -> tuple[Trace, Priors]:
    """A replica with *num* clients all the time, and what it has learned in the end."""
    policy = SpeculationPolicy(PolicySettings(priors=priors), key="k")
    replica = Replica(policy, QUIET, Texts(between=0.3, within=0.3), seed=2)
    if priors is None:
        replica.warm_up()
    trace = run_closed(replica, lambda now: num, until, Shape(48, 96), seed=5)
    return trace.between(until / 4, until), policy.priors()


@pytest.fixture(scope="module")
def fleet() -> Priors:
    """What a replica has learned at a middling load."""
    return measure(12)[1]


@pytest.mark.parametrize("num", [1, 8, 32])
def test_predictions_hold_at_loads_not_seen_before(fleet: Priors, num: int) -> None:
    """From priors learned at one load, TPOT and throughput at others are predicted within 20 %."""
    point, (trace, _) = operating_point(fleet, LENGTHS, num), measure(num, fleet)
    tpot = sum(f.tpot for f in trace.finished) / len(trace.finished)
    assert point.tpot_seconds == pytest.approx(tpot, rel=0.2)
    assert point.tokens_per_second == pytest.approx(trace.tokens_per_second, rel=0.2)


def test_k_falls_and_tpot_rises_with_concurrency(fleet: Priors) -> None:
    """More requests, longer steps, less speculation, and more tokens per second until the device is full."""
    points = [operating_point(fleet, LENGTHS, num) for num in (1, 4, 16, 64)]
    ks = [p.num_speculative_tokens for p in points]
    assert ks == sorted(ks, reverse=True)
    assert ks[0] >= 3
    assert ks[-1] <= 1
    assert [p.tpot_seconds for p in points] == sorted(p.tpot_seconds for p in points)
    assert [p.tokens_per_second for p in points] == sorted(p.tokens_per_second for p in points)


def test_capacity_is_the_most_within_the_targets(fleet: Priors) -> None:
    """The point found keeps the targets, one more request would not, and a tighter target gives less."""
    loose = capacity(fleet, LENGTHS, max_running_requests=64, tpot_target_seconds=0.05)
    tight = capacity(fleet, LENGTHS, max_running_requests=64, tpot_target_seconds=0.025)
    assert loose.meets_targets
    assert tight.meets_targets
    assert tight.concurrency < loose.concurrency < 64
    assert loose.tpot_seconds <= 0.05 < operating_point(fleet, LENGTHS, loose.concurrency + 1).tpot_seconds
    assert tight.tokens_per_second < loose.tokens_per_second
    assert loose.requests_per_second == pytest.approx(loose.tokens_per_second / 96)


def test_a_ttft_target_bounds_too(fleet: Priors) -> None:
    """A target for the first token leaves less room than none."""
    free = capacity(fleet, LENGTHS, max_running_requests=64)
    bound = capacity(fleet, LENGTHS, max_running_requests=64, ttft_target_seconds=0.12)
    assert bound.ttft_seconds <= 0.12 < free.ttft_seconds
    assert bound.concurrency < free.concurrency == 64


def test_an_impossible_target_is_said_to_be_so(fleet: Priors) -> None:
    """Where not even one request meets the target, the point of one request is returned, marked."""
    point = capacity(fleet, LENGTHS, max_running_requests=64, tpot_target_seconds=0.0001)
    assert (point.meets_targets, point.concurrency) == (False, 1)


def test_speculation_is_counted_only_where_it_was_seen() -> None:
    """Without evidence of a draft no speculation is assumed; with it, capacity at a target is larger."""
    latency = LatencyPrior({"target.step": 0.02, "target.tokens_from_1": 0.0005, "draft.forward": 0.001}, 100.0)
    without = Priors("k", latency)
    with_draft = Priors("k", latency, (AcceptancePrior("draft", "greedy", (0.8,), (100.0,)),))
    plain, fast = (
        capacity(priors, LENGTHS, max_running_requests=64, tpot_target_seconds=0.025)
        for priors in (without, with_draft)
    )
    assert plain.num_speculative_tokens == 0
    assert fast.num_speculative_tokens > 0
    assert fast.tokens_per_second > 1.3 * plain.tokens_per_second


def test_priors_without_a_time_model_are_refused() -> None:
    """Capacity cannot be guessed from acceptance alone; the error names what is missing."""
    with pytest.raises(ValueError, match=r"priors\.latency"):
        capacity(Priors("k"), LENGTHS, max_running_requests=8)


def test_prompts_found_computed_cost_no_time(fleet: Priors) -> None:
    """Where most of a long prompt is cached, a replica carries more: as with a short prompt over the same context."""
    plain = RequestLengths(prompt_tokens=400, output_tokens=20)
    cached = RequestLengths(prompt_tokens=400, output_tokens=20, cached_share=0.9)
    assert cached.prefill_tokens == pytest.approx(40)
    assert cached.mean_context_tokens == plain.mean_context_tokens
    slow, fast = operating_point(fleet, plain, 8), operating_point(fleet, cached, 8)
    assert fast.requests_per_second > 1.2 * slow.requests_per_second
    assert fast.ttft_seconds < slow.ttft_seconds
