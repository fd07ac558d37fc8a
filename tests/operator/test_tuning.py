"""Stage one: what the fleet's reports change in the policy, and what leaves it alone."""

from typing import Any

import msgspec
import pytest

from fleets import NOW, histogram, later, linear_priors, load, replica, seen, smartspec
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings
from smartspec_operator import tuning
from smartspec_operator.reported import ReportedPolicy, Status
from smartspec_operator.world import History, PolicyDecision, TuningState

SLO: dict[str, Any] = {"slo": {"tpotSeconds": 0.05}}


def decide(*loads: LoadReport, past: History | None = None, after: float = 0.0, **spec: Any) -> PolicyDecision:
    """Tune a fleet of replicas with these reports."""
    world = seen(*(replica(f"r{index}", report) for index, report in enumerate(loads)))
    return tuning.decide(smartspec(**spec), world, past or History(), now=later(after))


def past_of(decision: PolicyDecision) -> History:
    """What the next decision reads back."""
    return History(settings=decision.settings, tuning=decision.state)


def slow(decision: PolicyDecision, seconds: float, **more: Any) -> LoadReport:
    """A busy replica under the settings of *decision*, whose requests all took *seconds* per token."""
    fields: dict[str, Any] = {"generation": decision.settings.generation, "num_requests_running": 8, **more}
    return load(tokens_per_second=300.0, tpot=histogram(*[seconds] * 40), **fields)


def test_the_first_policy_says_what_the_spec_says() -> None:
    """Before any replica has answered the objective and the ceiling are the spec's own."""
    decision = decide(**SLO, speculation={"maxTokens": 5, "policy": "Batch"})
    expected = PolicySettings(
        generation=1, policy="batch", max_speculative_tokens=5, tpot_target_seconds=0.05, reason="from the spec"
    )
    assert decision.settings == expected


def test_an_unchanged_decision_is_the_same_decision() -> None:
    """Tuning is no heartbeat: hours of the same reports keep generation, state and reason."""
    first = decide(load(tokens_per_second=100.0, priors=linear_priors()), **SLO)
    report = load(tokens_per_second=100.0, priors=linear_priors(), generation=first.settings.generation)
    again = decide(report, past=past_of(first), after=7200, **SLO)
    assert again == first


def test_a_missed_objective_tightens_the_target_by_what_was_measured() -> None:
    """Predictions that kept 0.05 s while requests took 0.07 s were too hopeful by that much."""
    first = decide(**SLO)
    missed = decide(slow(first, 0.07), past=past_of(first), after=60, **SLO)
    assert missed.settings.generation == 2
    assert missed.settings.tpot_target_seconds == pytest.approx(0.05 * 0.05 / 0.075, rel=0.08)
    assert "tpot_target_seconds 0.05 ->" in missed.settings.reason


def test_what_was_measured_before_a_change_tells_nothing_about_it() -> None:
    """Within one window after a change, and of replicas that have not taken it yet, nothing is concluded."""
    first = decide(**SLO)
    assert decide(slow(first, 0.07), past=past_of(first), after=20, **SLO).settings == first.settings
    stale = slow(first, 0.07, generation=0)
    assert decide(stale, past=past_of(first), after=60, **SLO).settings.tpot_target_seconds == 0.05


def test_a_target_that_was_tightened_is_relaxed_when_there_is_room_and_need() -> None:
    """With requests waiting and tokens far faster than promised the target goes back, step by step."""
    first = decide(**SLO)
    missed = decide(slow(first, 0.1), past=past_of(first), after=60, **SLO)
    eager = decide(slow(missed, 0.02, num_requests_waiting=5), past=past_of(missed), after=120, **SLO)
    assert missed.state.tpot_factor < eager.state.tpot_factor <= 1.0
    content = decide(slow(missed, 0.02), past=past_of(missed), after=120, **SLO)
    assert content.settings == missed.settings


def test_nothing_is_left_when_the_tightest_target_still_fails() -> None:
    """Then only more replicas help, where several requests share one."""
    first = decide(**SLO)
    worst = History(settings=first.settings, tuning=TuningState(changed=NOW, tpot_factor=tuning.LEAST_AIM))
    assert decide(slow(first, 0.2), past=worst, after=60, **SLO).exhausted
    assert not decide(slow(first, 0.2, num_requests_running=1), past=worst, after=60, **SLO).exhausted


def test_late_first_tokens_with_a_queue_are_a_matter_of_replicas() -> None:
    """No setting makes a queue shorter."""
    spec = {"slo": {"ttftSeconds": 0.5}}
    first = decide(**spec)
    late = load(
        tokens_per_second=300.0, generation=1, ttft=histogram(*[2.0] * 40), num_requests_running=8,
        num_requests_waiting=3,
    )  # fmt: skip
    assert decide(late, past=past_of(first), after=60, **spec).exhausted


def test_admission_follows_from_the_fleets_time_model() -> None:
    """As many requests run as the merged model carries within the target, here fewer than the spec allows."""
    decision = decide(load(tokens_per_second=300.0, priors=linear_priors()), **SLO)
    running = decision.settings.max_running_requests
    assert running is not None
    assert 20 < running < 64
    unbound = decide(load(tokens_per_second=300.0, priors=linear_priors()))
    assert unbound.settings.max_running_requests is None


def test_a_target_out_of_reach_does_not_serialise_requests() -> None:
    """A single request is too slow already: serving one at a time would only add a queue."""
    decision = decide(load(tokens_per_second=300.0, priors=linear_priors()), slo={"tpotSeconds": 0.001})
    assert decision.settings.max_running_requests is None


def test_the_queue_is_bounded_only_where_no_replica_can_be_added() -> None:
    """So many wait that the last of them gets its first token in time, but growing comes before turning away."""
    report = load(tokens_per_second=300.0, priors=linear_priors())
    fixed = decide(report, slo={"ttftSeconds": 2.0})
    assert fixed.settings.max_queued_requests == pytest.approx(2 * 9.4, abs=2)
    growing = decide(report, slo={"ttftSeconds": 2.0}, autoscaling={"maxReplicas": 3})
    assert growing.settings.max_queued_requests is None


def test_short_memory_halves_speculation_and_calm_restores_it() -> None:
    """Proposals are the first to give way, at most once in ten seconds, and never quite vanish."""
    first = decide(load(kv_cache_usage=0.5))
    full = load(kv_cache_usage=0.97, generation=1)
    cut = decide(full, past=past_of(first), after=15)
    assert (cut.settings.max_speculative_tokens, cut.state.ceiling) == (4, 4)
    assert decide(full, past=past_of(cut), after=20).settings == cut.settings
    calm = load(kv_cache_usage=0.2, generation=2)
    assert decide(calm, past=past_of(cut), after=30).settings == cut.settings
    restored = decide(calm, past=past_of(cut), after=50)
    assert (restored.settings.max_speculative_tokens, restored.state.ceiling) == (8, None)


def test_a_fixed_policy_is_not_cut() -> None:
    """Who asks for exactly four gets four."""
    spec = {"speculation": {"policy": "Fixed", "maxTokens": 4}}
    first = decide(load(kv_cache_usage=0.97), **spec)
    assert decide(load(kv_cache_usage=0.97, generation=1), past=past_of(first), after=60, **spec) == first


def test_an_edit_of_the_spec_takes_effect_at_once() -> None:
    """A new ceiling or policy needs no window, and says what changed."""
    first = decide(**SLO)
    edited = decide(past=past_of(first), after=1, **SLO, speculation={"method": "Off"})
    assert (edited.settings.policy, edited.settings.generation) == ("off", 2)
    assert edited.settings.reason == "policy request -> off"


def test_what_the_fleet_learned_is_kept_for_replicas_that_start() -> None:
    """Priors travel with the settings, change no generation, and are not rewritten for noise."""
    first = decide(**SLO)
    learned = decide(load(priors=linear_priors()), past=past_of(first), **SLO)
    assert learned.settings.priors is not None
    assert learned.settings.generation == first.settings.generation
    noisy = linear_priors(step_seconds=0.0204)
    assert decide(load(priors=noisy), past=past_of(learned), **SLO).settings.priors == learned.settings.priors
    slower = linear_priors(step_seconds=0.04)
    assert decide(load(priors=slower), past=past_of(learned), **SLO).settings.priors != learned.settings.priors


def test_a_foreign_policy_is_replaced_under_a_later_number() -> None:
    """A replica that was told a later generation by someone else would refuse an earlier one."""
    first = decide(**SLO)
    reclaimed = decide(load(generation=41), past=past_of(first), **SLO)
    assert reclaimed.settings.generation == 42
    assert msgspec.structs.replace(reclaimed.settings, generation=1, reason=first.settings.reason) == first.settings


def test_numbers_go_on_though_the_policy_was_lost() -> None:
    """Somebody deletes the ConfigMap while no replica answers: an older number would be refused by all of them."""
    owner = msgspec.structs.replace(smartspec(**SLO), status=Status(policy=ReportedPolicy(generation=7)))
    assert tuning.decide(owner, seen(), History(), now=NOW).settings.generation == 8


def test_between_decisions_the_last_one_stands() -> None:
    """A tick on which tuning is not due changes nothing, whatever is measured."""
    first = decide(**SLO)
    world = seen(replica("a", slow(first, 0.2)))
    kept = tuning.keep(smartspec(**SLO), world, past_of(first), now=later(60))
    assert kept == first
