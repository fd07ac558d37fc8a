"""The TPOT target: what may run, how much prefill may interfere, and what the choice of k does about it."""

import pytest

from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import PolicyName, PolicySettings
from smartspec.policy.simulate import Replica, Trace, run_closed
from smartspec.policy.types import BatchState, Candidate, StepFeatures, StepOutcome, StepSeconds
from smartspec.policy.worlds import Device, Shape, Texts

TARGET = 0.05


MIXED = Texts(ease=lambda now: 0.6, between=1.8)
"""Requests easy and hard to speculate for, acceptance from 0.2 to 0.95."""


def flood(
    target: float | None, policy: PolicyName = "request", *, until: float = 16.0, texts: Texts | None = None
) -> Trace:
    """Forty clients at once on the measured CPU, after a warm-up; the first seconds, when all prefill, left out."""
    settings = PolicySettings(policy=policy, tpot_target_seconds=target)
    replica = Replica(
        SpeculationPolicy(settings, key="k"), Device(), texts or Texts(), seed=1, max_num_batched_tokens=256
    )
    replica.warm_up()
    return run_closed(replica, lambda now: 40, until, Shape(48, 48), seed=3).between(6.0, until)


def test_the_target_is_kept_in_a_flood() -> None:
    """Unbounded, nearly every request breaks the target; bounded, nearly nine in ten keep it, on the same replica."""
    free, bound = flood(None), flood(TARGET)
    assert free.attainment(TARGET) < 0.2
    assert bound.attainment(TARGET) > 0.85


def test_speculation_lets_more_run_within_the_target() -> None:
    """With speculation the same target leaves room for more requests than without, and for more tokens."""
    fast, plain = flood(TARGET), flood(TARGET, "off")
    assert fast.attainment(TARGET) > 0.85
    assert fast.tokens_per_second > 1.15 * plain.tokens_per_second


def test_the_target_holds_for_hard_requests_beside_easy_ones() -> None:
    """Where lengths differ by request nobody pays for the others: as many keep the target as without speculation, of
    which stragglers alone break it, and tokens come faster."""
    fast, plain = flood(TARGET, texts=MIXED), flood(TARGET, "off", texts=MIXED)
    assert fast.attainment(TARGET) > max(0.8, plain.attainment(TARGET) - 0.08)
    assert fast.tokens_per_second > 1.02 * plain.tokens_per_second


def learned(per_token: float = 0.001) -> SpeculationPolicy:
    """A policy that has seen a device of 20 ms plus *per_token*, and a target of 50 ms."""
    policy = SpeculationPolicy(PolicySettings(policy="off", tpot_target_seconds=TARGET), key="k")
    for _ in range(10):
        for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            features = StepFeatures(tokens, 0, min(tokens, 64), prefill_tokens=max(0, tokens - 64))
            seconds = StepSeconds(0.0, 0.02 + per_token * (tokens - 1), 0.0005)
            policy.observe(StepOutcome(policy.decide(BatchState(())), features, seconds, (), 0))
    return policy


def batch(num: int) -> BatchState:
    """*num* requests that decode without a draft."""
    return BatchState(tuple(Candidate(f"r{i}", 10, 8, "greedy") for i in range(num)))


def test_admission_stops_where_a_step_reaches_the_target() -> None:
    """At 20 ms plus 1 ms a request, some 27 requests keep 50 ms with a little headroom, not 64 and not 10."""
    limits = learned().limits(batch(4))
    assert limits.max_running_requests is not None
    assert 22 <= limits.max_running_requests <= 29


def test_prefill_gets_what_the_target_leaves() -> None:
    """The more requests decode, the less prefill may share their step; a small chunk always may."""
    policy = learned()
    chunks = [policy.limits(batch(num)).max_prefill_tokens or 0 for num in (1, 10, 20, 40)]
    assert chunks[0] == pytest.approx(27, abs=6)
    assert sorted(chunks, reverse=True) == chunks
    assert chunks[-1] == 16


def test_an_impossible_target_still_serves() -> None:
    """When not even one request can keep the target, one at a time is served, and prefill goes on."""
    policy = learned()
    policy.apply(PolicySettings(generation=1, policy="off", tpot_target_seconds=0.001))
    limits = policy.limits(batch(4))
    assert (limits.max_running_requests, limits.max_prefill_tokens) == (1, 16)


def test_nobody_decoding_leaves_prefill_free() -> None:
    """Where nobody waits for a next token prefill may take the whole step, but admission holds."""
    limits = learned().limits(BatchState(()))
    assert limits.max_prefill_tokens is None
    assert limits.max_running_requests is not None


def test_nothing_is_limited_before_anything_is_known() -> None:
    """A policy that has never seen a step does not limit by guesses."""
    policy = SpeculationPolicy(PolicySettings(tpot_target_seconds=TARGET), key="k")
    limits = policy.limits(batch(4))
    assert (limits.max_running_requests, limits.max_prefill_tokens) == (None, None)
