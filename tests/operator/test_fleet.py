"""Many reports as one: sums, weighted means, and what a fleet has learned together."""

import pytest
from msgspec.structs import replace

from fleets import histogram, linear_priors, load
from smartspec.policy.latency import model_of
from smartspec.policy.settings import AcceptancePrior, LatencyPrior, Priors
from smartspec.policy.types import StepFeatures
from smartspec_operator.fleet import attainment, differ, merged_priors, together

STEP = StepFeatures(target_tokens=8, context_tokens=800, num_requests=8)


def seconds(priors: Priors | None) -> float:
    """What *priors* predict for a small step."""
    assert priors is not None
    assert priors.latency is not None
    return model_of(priors.latency).predict(STEP).total


def weighing(priors: Priors, weight: float) -> Priors:
    """The same knowledge resting on *weight* steps."""
    assert priors.latency is not None
    latency = LatencyPrior(coefficients=priors.latency.coefficients, weight=weight)
    return Priors(key=priors.key, latency=latency, acceptance=priors.acceptance)


def test_rates_add_up_and_lengths_are_weighted() -> None:
    """A busy replica's requests say more about what requests are like than an idle one's."""
    fleet = together([load(tokens_per_second=300.0, mean_output=100.0), load(tokens_per_second=50.0, mean_output=50.0)])
    assert fleet.tokens_per_second == 350.0
    assert fleet.requests_per_second == 4.0
    assert fleet.lengths.output_tokens == pytest.approx((3 * 100 + 1 * 50) / 4)


def test_found_prefixes_are_weighted_like_lengths() -> None:
    """What the fleet's prompts cost follows how many of their tokens were found, where the requests are."""
    busy, idle = load(tokens_per_second=300.0, mean_output=100.0), load(tokens_per_second=50.0, mean_output=50.0)
    busy = replace(busy, shape=replace(busy.shape, prefix_hit_share=0.8))
    lengths = together([busy, idle]).lengths
    assert lengths.cached_share == pytest.approx(0.6)
    assert lengths.prefill_tokens == pytest.approx(0.4 * lengths.prompt_tokens)


def test_no_reports_are_no_load() -> None:
    """An empty fleet is all zeros, and attains nothing that could be missed."""
    fleet = together([])
    assert (fleet.size, fleet.tokens_per_second, fleet.waiting) == (0, 0.0, 0)
    assert attainment(fleet, 1.0, 0.05) is None


def test_attainment_is_that_of_the_objective_missed_most() -> None:
    """Nine in ten first tokens in time and half of the rest: half."""
    fleet = together(
        [load(ttft=histogram(*[0.1] * 9, 3.0), tpot=histogram(0.01, 0.2)), load(tpot=histogram(0.01, 0.2))]
    )
    assert attainment(fleet, 1.0, 0.05) == pytest.approx(0.5)
    assert attainment(fleet, 1.0, None) == pytest.approx(0.9)
    assert attainment(fleet, None, None) is None


def test_priors_merge_by_evidence() -> None:
    """A replica that has seen nine times as many steps counts nine times as much."""
    fast, slow = linear_priors(step_seconds=0.01), linear_priors(step_seconds=0.03)
    merged = merged_priors([weighing(fast, 900), weighing(slow, 100), None])
    assert seconds(merged) == pytest.approx(0.9 * seconds(fast) + 0.1 * seconds(slow), rel=0.01)


def test_a_fleet_does_not_grow_certain_by_talking_to_itself() -> None:
    """Replicas seeded by each other share evidence: the merged weight is the largest, not the sum."""
    merged = merged_priors([weighing(linear_priors(), 500)] * 8)
    assert merged is not None
    assert merged.latency is not None
    assert merged.latency.weight == 500


def test_priors_of_another_key_do_not_mix() -> None:
    """During a change of hardware or draft two keys live side by side: the one with more evidence is kept."""
    known = weighing(linear_priors(), 500)
    other = Priors(key="cuda/bfloat16/demo", latency=LatencyPrior(coefficients={"target.step": 1.0}, weight=20))
    assert merged_priors([known, other]) == merged_priors([known])


def test_acceptance_merges_position_by_position() -> None:
    """Deeper positions come from those who got there."""
    short = AcceptancePrior(proposer="draft", verifier="greedy", rates=(0.5,), weights=(100.0,))
    long = AcceptancePrior(proposer="draft", verifier="greedy", rates=(0.8, 0.6), weights=(300.0, 200.0))
    base = linear_priors()
    merged = merged_priors([Priors(key=base.key, latency=base.latency, acceptance=(prior,)) for prior in (short, long)])
    assert merged is not None
    assert merged.acceptance[0].rates == pytest.approx((0.725, 0.6))
    assert merged.acceptance[0].weights == (300.0, 200.0)


def test_only_what_changes_predictions_is_worth_writing() -> None:
    """Noise is not, twice the evidence or other times are, and nothing learned replaces nothing known."""
    known = weighing(linear_priors(), 500)
    assert not differ(known, weighing(linear_priors(step_seconds=0.0205), 600))
    assert differ(known, weighing(linear_priors(), 1000))
    assert differ(known, weighing(linear_priors(step_seconds=0.04), 500))
    assert differ(None, known)
    assert not differ(known, None)
