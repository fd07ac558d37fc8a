"""The policy through its seam: decide, limit, observe, forget, hand on, explain."""

import json
from itertools import groupby

import pytest
from msgspec.structs import replace

from smartspec.policy.controller import MOST_RESTING_STEPS, SpeculationPolicy
from smartspec.policy.probing import CREDIT_STEPS
from smartspec.policy.settings import PolicyName, PolicySettings, Priors
from smartspec.policy.types import (
    BatchState,
    Candidate,
    Choice,
    Decision,
    RequestOutcome,
    StepFeatures,
    StepOutcome,
    StepSeconds,
)


def candidates(num: int, **changes: object) -> tuple[Candidate, ...]:
    """*num* requests that drafted last step and have room for 8 tokens."""
    usual = Candidate("r0", 200, 8, "greedy", draft_lag_tokens=1)
    return tuple(replace(usual, request_id=f"r{i}", **changes) for i in range(num))


def run(
    policy: SpeculationPolicy, num: int, accepted: int, *, steps: int = 60, per_token: float = 0.0005
) -> list[Decision]:
    """*steps* of *num* requests on a device of 20 ms plus *per_token*, where proposals are kept up to *accepted*."""
    found = []
    for _ in range(steps):
        batch = BatchState(candidates(num))
        decision = policy.decide(batch)
        ks = [c.num_tokens for c in decision.choices.values()]
        by_depth = tuple(sum(k >= d for k in ks) for d in range(1, max(ks, default=0) + 1))
        features = StepFeatures(num + sum(ks), 200 * num, num, draft_batch_by_depth=by_depth)
        seconds = StepSeconds(0.001 * len(by_depth), 0.02 + per_token * features.target_tokens, 0.001)
        outcomes = tuple(
            RequestOutcome(name, c.proposer, "greedy", c.num_tokens, min(accepted, c.num_tokens))
            for name, c in decision.choices.items()
        )
        kept = num + sum(o.num_accepted for o in outcomes)
        policy.observe(StepOutcome(decision, features, seconds, outcomes, kept))
        found.append(decision)
    return found


def mean_k(decisions: list[Decision]) -> float:
    """Speculative tokens per request and step."""
    drafted = sum(c.num_tokens for d in decisions for c in d.choices.values())
    return drafted / sum(d.baseline_tokens for d in decisions)


def is_rest(decision: Decision) -> bool:
    """Whether nobody was asked about."""
    return decision.reason == "plain decoding was best just now"


@pytest.mark.parametrize("name", ["request", "batch", "fixed", "off"])
def test_empty_batch_decides_nothing(name: PolicyName) -> None:
    """Without requests there is nothing to speculate and nothing to predict."""
    decision = SpeculationPolicy(PolicySettings(policy=name), key="k").decide(BatchState(()))
    assert (decision.choices, decision.predicted_tokens, decision.predicted_goodput) == ({}, 0.0, 0.0)


@pytest.mark.parametrize("name", ["request", "batch"])
def test_a_step_of_prefill_alone_is_predicted(name: PolicyName) -> None:
    """A step without decoding requests speculates nothing, and still has a predicted time."""
    policy = SpeculationPolicy(PolicySettings(policy=name), key="k")
    decision = policy.decide(BatchState((), prefill_tokens=128, prefill_context_tokens=128, num_prefills=1))
    assert not decision.choices
    assert decision.predicted_seconds > 0


def test_off_is_the_plain_path() -> None:
    """`off` makes no choice at all, whatever could be had, except for a request that insists."""
    policy = SpeculationPolicy(PolicySettings(policy="off"), key="k")
    assert policy.decide(BatchState(candidates(4, lookup_tokens=8, lookup_match_tokens=9))).choices == {}
    insisting = candidates(1, mode="fixed", max_speculative_tokens=3)
    assert policy.decide(BatchState(insisting)).choices == {"r0": Choice("draft", 3)}


def test_fixed_takes_k_for_everyone_with_room() -> None:
    """`fixed` gives each request k tokens, less where it has less room, from the draft before prompt lookup."""
    policy = SpeculationPolicy(PolicySettings(policy="fixed", max_speculative_tokens=4), key="k")
    batch = BatchState(
        (
            Candidate("roomy", 10, 8, "greedy", draft_lag_tokens=1),
            Candidate("tight", 10, 2, "greedy", draft_lag_tokens=1),
            Candidate("copies", 10, 8, "greedy", lookup_tokens=3, lookup_match_tokens=2),
            Candidate("bare", 10, 8, "greedy"),
            Candidate("full", 10, 0, "greedy", draft_lag_tokens=1),
            Candidate("declines", 10, 8, "greedy", mode="off", draft_lag_tokens=1),
        )
    )
    chosen = {name: (c.proposer, c.num_tokens) for name, c in policy.decide(batch).choices.items()}
    assert chosen == {"roomy": ("draft", 4), "tight": ("draft", 2), "copies": ("lookup", 3)}


def test_a_scarce_budget_is_shared_position_by_position() -> None:
    """With fewer nodes than `fixed` would take, nobody gets a second token before everybody has a first."""
    policy = SpeculationPolicy(PolicySettings(policy="fixed", max_speculative_tokens=4), key="k")
    choices = policy.decide(BatchState(candidates(4), max_nodes=6)).choices
    assert sorted(c.num_tokens for c in choices.values()) == [1, 1, 2, 2]


@pytest.mark.parametrize("name", ["request", "batch"])
def test_k_follows_acceptance(name: PolicyName) -> None:
    """All kept: k rises to where the draft still pays. Nothing kept: k falls to 0, but for probes."""
    kept = mean_k(run(SpeculationPolicy(PolicySettings(policy=name), key="k"), 2, 8)[-20:])
    lost = mean_k(run(SpeculationPolicy(PolicySettings(policy=name), key="k"), 2, 0)[-20:])
    assert kept > 6.0
    assert lost < 0.3


@pytest.mark.parametrize("name", ["request", "batch"])
def test_a_compute_bound_batch_does_not_speculate(name: PolicyName) -> None:
    """Where each token costs its full price, proposals that are mostly kept still do not pay."""
    policy = SpeculationPolicy(PolicySettings(policy=name), key="k")
    run(policy, 64, 1, per_token=0.01, steps=30)
    assert mean_k(run(policy, 64, 1, per_token=0.01, steps=30)) < 0.15


@pytest.mark.parametrize("name", ["request", "batch"])
def test_k_comes_back_after_a_long_time_without(name: PolicyName) -> None:
    """After 300 steps of hopeless text the policy has stopped; when the text turns, probes find out and it resumes."""
    policy = SpeculationPolicy(PolicySettings(policy=name), key="k")
    assert mean_k(run(policy, 4, 0, steps=300)[-50:]) < 0.3
    assert mean_k(run(policy, 4, 8, steps=300)[-50:]) > 4.0


def test_probes_are_paid_from_a_stated_share_of_time() -> None:
    """Where speculation never helps, all probes together cost less than the share that is set aside for them."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    decisions = run(policy, 16, 0, steps=600)
    probes, seconds = policy.explain()["probes"], sum(d.predicted_seconds for d in decisions)
    assert any(d.probe for d in decisions[300:])
    in_advance = 4 * max(d.predicted_seconds for d in decisions)
    assert probes["regret_seconds"] <= probes["share_of_step_time"] * seconds + in_advance


@pytest.mark.parametrize("name", ["request", "batch"])
def test_where_plain_decoding_stays_best_it_is_asked_for_seldom(name: PolicyName) -> None:
    """A large batch of hopeless text is looked at every few steps, and nobody need look for copies in between; of a
    small one each step is decided anew."""
    large, small = (SpeculationPolicy(PolicySettings(policy=name), key="k") for _ in range(2))
    rests = [is_rest(decision) for decision in run(large, 16, 0, steps=300)[100:]]
    assert sum(rests) > 0.5 * len(rests)
    longest = max(len(list(group)) for rest, group in groupby(rests) if rest)
    assert longest == MOST_RESTING_STEPS
    assert not any(is_rest(decision) for decision in run(small, 4, 0, steps=300))


def test_a_rest_ends_with_a_wish_and_with_new_settings() -> None:
    """Whoever asks for a length of its own gets it at once, and so does everybody under a policy put in force."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    while not policy.rests(16):
        run(policy, 16, 0, steps=1)
    assert not policy.rests(4)
    insisting = replace(candidates(1)[0], request_id="insists", mode="fixed", max_speculative_tokens=3)
    assert policy.decide(BatchState((*candidates(16), insisting))).choices["insists"] == Choice("draft", 3)
    while not policy.rests(16):
        run(policy, 16, 0, steps=1)
    policy.apply(PolicySettings(policy="fixed", max_speculative_tokens=2))
    assert not policy.rests(16)
    assert mean_k(run(policy, 16, 0, steps=1)) == 2.0


@pytest.mark.parametrize(
    "insisting",
    [
        Candidate("insists", 200, 0, "greedy", mode="fixed"),
        Candidate("insists", 200, 8, "greedy", mode="fixed"),
        Candidate("insists", 200, 8, "greedy", lookup_tokens=1, lookup_match_tokens=2),
    ],
    ids=["no room", "nothing to copy", "forced by a grammar"],
)
def test_one_who_insists_keeps_nobody_from_copying(insisting: Candidate) -> None:
    """Whoever breaks rests at every step, without ever speculating itself, must not leave the others unasked for ever:
    when their text comes to be worth copying, they copy it."""
    policy = SpeculationPolicy(PolicySettings(), key="k")

    def step(accepted: int) -> int:
        copies = 0 if policy.rests(17) else 8
        others = candidates(16, draft_lag_tokens=None, lookup_tokens=copies, lookup_match_tokens=4 if copies else 0)
        decision = policy.decide(BatchState((*others, insisting)))
        drafted = sum(choice.num_tokens for choice in decision.choices.values())
        outcomes = tuple(
            RequestOutcome(
                name, choice.proposer, "greedy", choice.num_tokens,
                0 if name == "insists" else min(accepted, choice.num_tokens), 2 if name == "insists" else 4,
            )
            for name, choice in decision.choices.items()
        )  # fmt: skip
        kept = 17 + sum(outcome.num_accepted for outcome in outcomes)
        seconds = StepSeconds(0.0, 0.02 + 0.0005 * (17 + drafted), 0.001)
        policy.observe(StepOutcome(decision, StepFeatures(17 + drafted, 3400, 17), seconds, outcomes, kept))
        return len(decision.choices.keys() - {"insists"})

    for _ in range(60):
        step(0)
    assert sum(step(8) for _ in range(200)) > 0.5 * 200 * 16


def test_a_quiet_time_saves_up_little() -> None:
    """However long nothing was worth trying, what a flood may spend at once is a part of one step."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    steps = run(policy, 2, 8, steps=600)
    mean = sum(decision.predicted_seconds for decision in steps[-100:]) / 100
    assert 0.0 < policy.explain()["probes"]["credit_seconds"] < 1.1 * CREDIT_STEPS * mean


def test_only_steps_with_a_choice_pay_for_probes() -> None:
    """A long time under `fixed` saves up nothing that `request` would then spend at once."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    run(policy, 16, 4)
    policy.apply(PolicySettings(policy="fixed", max_speculative_tokens=4))
    before = policy.explain()["probes"]["credit_seconds"]
    run(policy, 16, 4, steps=300)
    assert policy.explain()["probes"]["credit_seconds"] <= before


def test_a_plain_step_is_tried_while_it_might_be_better() -> None:
    """While the time of a step without speculation is only guessed, one is run now and then; once known, no more."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    decisions = run(policy, 16, 1, steps=400, per_token=0.0006)
    plain = [number for number, d in enumerate(decisions) if d.probe and not d.choices]
    assert plain
    assert mean_k(decisions[200:]) > 0.5


def test_predictions_hold_both_ways() -> None:
    """After some steps the predicted time and tokens are what comes, and the baseline is the step without."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    run(policy, 4, 3, steps=200)
    decision = run(policy, 4, 3, steps=1)[0]
    assert decision.baseline_tokens == 4.0
    assert decision.baseline_seconds == pytest.approx(0.023, rel=0.2)
    assert decision.predicted_tokens == pytest.approx(16.0, rel=0.1)
    assert decision.predicted_goodput > decision.baseline_tokens / decision.baseline_seconds


def test_lookup_is_used_where_it_is_good() -> None:
    """Requests with no draft model speculate by copying, those with no match do not at all."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    batch = BatchState(
        (
            Candidate("match", 100, 8, "greedy", lookup_tokens=8, lookup_match_tokens=9),
            Candidate("none", 100, 8, "greedy"),
        )
    )
    assert {n: c.proposer for n, c in policy.decide(batch).choices.items()} == {"match": "lookup"}


@pytest.mark.parametrize(("copied", "share"), [(8, (0.6, 1.0)), (0, (0.0, 0.05))])
def test_copying_is_found_out_beside_a_good_draft(copied: int, share: tuple[float, float]) -> None:
    """A draft that is mostly right does not keep better copies unknown: they are tried, and taken where they are good
    and hardly ever where they are not."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    alone, beside = (BatchState(candidates(4, lookup_tokens=n, lookup_match_tokens=n + 1)) for n in (0, 8))
    chosen = []
    for step in range(500):
        decision = policy.decide(alone if step < 100 else beside)
        drafts = [c.num_tokens for c in decision.choices.values() if c.proposer == "draft"]
        num_nodes = sum(c.num_tokens for c in decision.choices.values())
        outcomes = tuple(
            RequestOutcome(
                name, c.proposer, "greedy", c.num_tokens,
                min(c.num_tokens, (3 + step % 6) if c.proposer == "draft" else copied),
                9 if c.proposer == "lookup" else 0,
            )
            for name, c in decision.choices.items()
        )  # fmt: skip
        by_depth = tuple(sum(k >= d for k in drafts) for d in range(1, max(drafts, default=0) + 1))
        features = StepFeatures(4 + num_nodes, 800, 4, draft_batch_by_depth=by_depth)
        seconds = StepSeconds(0.001 * len(by_depth), 0.02 + 0.0005 * features.target_tokens, 0.001)
        kept = 4 + sum(o.num_accepted for o in outcomes)
        policy.observe(StepOutcome(decision, features, seconds, outcomes, kept))
        chosen += [c.proposer for c in decision.choices.values()] if step >= 300 else []
    low, high = share
    assert low <= chosen.count("lookup") / len(chosen) <= high


def test_settings_are_hot() -> None:
    """A lower ceiling holds from the next decision on, and a newer policy replaces the older one."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    run(policy, 2, 8)
    policy.apply(PolicySettings(generation=1, max_speculative_tokens=2))
    assert max(c.num_tokens for c in policy.decide(BatchState(candidates(2))).choices.values()) == 2
    policy.apply(PolicySettings(generation=2, max_speculative_tokens=0))
    assert policy.decide(BatchState(candidates(2))).choices == {}
    assert policy.settings.generation == 2


def test_priors_of_another_key_are_refused() -> None:
    """What was learned on another device or model says nothing here: nothing changes, and the error names the field."""
    policy = SpeculationPolicy(PolicySettings(), key="here")
    with pytest.raises(ValueError, match=r"priors\.key"):
        policy.apply(PolicySettings(generation=5, priors=Priors(key="elsewhere")))
    assert policy.settings.generation == 0


def test_priors_carry_what_was_learned() -> None:
    """A policy that is handed the priors of another decides from its first step as that one does."""
    teacher = SpeculationPolicy(PolicySettings(), key="k")
    run(teacher, 2, 0, steps=200)
    heir = SpeculationPolicy(PolicySettings(priors=teacher.priors()), key="k")
    novice = SpeculationPolicy(PolicySettings(), key="k")
    batch = BatchState(candidates(2))
    bold, shy = (sum(c.num_tokens for c in p.decide(batch).choices.values()) for p in (novice, heir))
    assert shy < bold / 2
    assert heir.decide(batch).predicted_seconds == pytest.approx(0.022, rel=0.1)


def test_switching_to_the_paper_s_policy_starts_from_what_is_known() -> None:
    """The line of `batch` is seeded from the curve, so that a hot switch does not start from nothing."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    for num in (1, 4, 16, 64):
        run(policy, num, 1, per_token=0.002, steps=40)
    policy.apply(PolicySettings(generation=1, policy="batch"))
    policy.decide(BatchState(candidates(64)))
    line = policy._line.predict(StepFeatures(100, 64 * 200, 64))
    assert line.target == pytest.approx(0.02 + 0.002 * 100, rel=0.15)
    assert line.host == pytest.approx(0.001, rel=0.1)


def test_explanation_is_plain_json() -> None:
    """`/speculation` can be serialised, and shows the models, their errors, the probes and the last steps."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    run(policy, 3, 2)
    shown = json.loads(json.dumps(policy.explain()))
    assert shown["time_model"]["coefficients"]["target.step"] > 0
    assert shown["acceptance"]["pairs"][0]["proposer"] == "draft"
    assert len(shown["steps"]) == 32
    assert {"reason", "predicted_seconds", "measured_seconds"} <= shown["steps"][-1].keys()


def test_a_steps_tokens_are_explained_by_proposer() -> None:
    """What was drafted, what was copied, and what of both was in vain; nothing, for a step that proposed nothing."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    outcomes = (
        RequestOutcome("r0", "draft", "greedy", 5, 2),
        RequestOutcome("r1", "lookup", "rejection", 3, 3, lookup_match_tokens=4),
        RequestOutcome("r2", "draft", "coupled", 1, 0),
    )
    features, seconds = StepFeatures(12, 600, 3), StepSeconds(0.001, 0.02, 0.001)
    for step in (outcomes, ()):
        policy.observe(StepOutcome(Decision(), features, seconds, step, 8))
    names = ("draft_tokens", "lookup_tokens", "wasted_tokens")
    assert [[row[name] for name in names] for row in policy.explain()["steps"]] == [[6, 3, 4], [0, 0, 0]]


def test_limits_are_free_without_a_target() -> None:
    """No TPOT target, no limits."""
    policy = SpeculationPolicy(PolicySettings(), key="k")
    limits = policy.limits(BatchState(candidates(4)))
    assert (limits.max_running_requests, limits.max_prefill_tokens) == (None, None)
