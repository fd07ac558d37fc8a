"""The policy through its seam: decide, observe, forget, hand on."""

import pytest

from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import PolicySettings, Priors
from smartspec.policy.types import BatchState, Candidate


def test_empty_batch_decides_nothing() -> None:
    """Without requests there is nothing to speculate and nothing to predict."""
    decision = SpeculationPolicy(PolicySettings(), key="k").decide(BatchState(()))
    assert (decision.choices, decision.predicted_tokens) == ({}, 0.0)


def test_fixed_takes_k_for_everyone_with_room() -> None:
    """`fixed` gives each request k tokens, less where it has less room, from the draft before prompt lookup."""
    policy = SpeculationPolicy(PolicySettings(policy="fixed", max_speculative_tokens=4), key="k")
    batch = BatchState(
        (
            Candidate("roomy", 10, 8, "greedy", draft_lag_tokens=1),
            Candidate("tight", 10, 2, "greedy", draft_lag_tokens=1),
            Candidate("copies", 10, 8, "greedy", lookup_tokens=3, lookup_match_tokens=2),
            Candidate("declines", 10, 8, "greedy", mode="off", draft_lag_tokens=1),
        )
    )
    chosen = {name: (c.proposer, c.num_tokens) for name, c in policy.decide(batch).choices.items()}
    assert chosen == {"roomy": ("draft", 4), "tight": ("draft", 2), "copies": ("lookup", 3)}


def test_priors_of_another_key_are_refused() -> None:
    """What was learned on another device or model says nothing here, and the error names the field."""
    policy = SpeculationPolicy(PolicySettings(), key="here")
    with pytest.raises(ValueError, match=r"priors\.key"):
        policy.apply(PolicySettings(priors=Priors(key="elsewhere")))
