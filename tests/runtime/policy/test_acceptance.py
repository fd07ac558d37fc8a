"""Acceptance: conditional, censored, forgotten by tokens, per pair, per request, handed on."""

import numpy as np
import pytest

from smartspec.policy.acceptance import VERIFIER, AcceptanceModel, row_of
from smartspec.policy.settings import AcceptancePrior
from smartspec.policy.types import Proposer, RequestOutcome, Verifier


def outcome(
    drafted: int,
    accepted: int,
    *,
    request: str = "r",
    proposer: Proposer = "draft",
    verifier: Verifier = "greedy",
    match: int = 0,
) -> RequestOutcome:
    """*accepted* of *drafted* tokens were kept."""
    return RequestOutcome(request, proposer, verifier, drafted, accepted, match)


def rates(model: AcceptanceModel, proposer: Proposer = "draft", verifier: Verifier = "greedy", match: int = 0) -> list:
    """Conditional rates of one pair's first positions."""
    return model.rates[row_of(proposer, verifier, match), :8].tolist()


def survival(model: AcceptanceModel, requests: list[str], depth: int) -> np.ndarray:
    """Chances of greedy requests' drafted tokens."""
    none = np.zeros(len(requests), dtype=np.intp)
    return model.survival(none + VERIFIER["greedy"], none, model.slots_of(requests), none + depth, none, depth)[0]


def test_positions_after_the_first_rejection_are_no_trials() -> None:
    """Four drafted, the first rejected: positions 2 to 4 were never tried, so their estimate does not fall below the
    first one's (accepted / drafted would be far lower)."""
    model, random = AcceptanceModel(), np.random.default_rng(0)
    for step in range(600):
        kept = 0
        while kept < 4 and random.random() < 0.7:
            kept += 1
        model.observe([outcome(4, kept, request=f"r{step}")], 1)
    assert rates(model)[:4] == pytest.approx([0.7] * 4, abs=0.08)


def test_positions_have_rates_of_their_own() -> None:
    """A profile that falls with depth is found, and positions nobody reached are like the last one reached."""
    model, random, truth = AcceptanceModel(), np.random.default_rng(0), [0.9, 0.7, 0.4]
    for step in range(1500):
        kept = 0
        while kept < 3 and random.random() < truth[kept]:
            kept += 1
        model.observe([outcome(3, kept, request=f"r{step}")], 1)
    found = rates(model)
    assert found[:3] == pytest.approx(truth, abs=0.06)
    assert found[7] == found[2]


def test_pairs_do_not_mix() -> None:
    """Rejections of one proposer and verifier say nothing of the others."""
    model = AcceptanceModel()
    before = rates(model, "lookup", "coupled", 4)
    for step in range(50):
        model.observe([outcome(4, 0, request=f"r{step}"), outcome(4, 4, request=f"s{step}", verifier="rejection")], 2)
    assert rates(model)[0] < 0.1
    assert rates(model, verifier="rejection")[0] > 0.9
    assert rates(model, "lookup", "coupled", 4) == before


def test_longer_matches_are_better_evidence() -> None:
    """Prompt lookup after a match of one token is told apart from one after ten."""
    model = AcceptanceModel()
    for step in range(60):
        model.observe(
            [
                outcome(4, 0, request=f"a{step}", proposer="lookup", match=1),
                outcome(4, 4, request=f"b{step}", proposer="lookup", match=10),
            ],
            2,
        )
    assert rates(model, "lookup", match=1)[0] < 0.25
    assert rates(model, "lookup", match=30)[0] > 0.85


def test_evidence_fades_with_tokens() -> None:
    """After a change, a few thousand tokens of the new truth outweigh ten times as many of the old."""
    model = AcceptanceModel()
    for step in range(4000):
        model.observe([outcome(1, 1, request=f"r{step}")], 5)
    for step in range(600):
        model.observe([outcome(1, 0, request=f"s{step}")], 5)
    assert rates(model)[0] < 0.3


def test_a_silent_pair_keeps_its_rate_but_not_its_certainty() -> None:
    """Long after speculation ended its rate still stands, and a dozen probes suffice to turn it."""
    model = AcceptanceModel()
    for step in range(1000):
        model.observe([outcome(1, 0, request=f"r{step}")], 1)
    for _ in range(1000):
        model.observe([], 64)
    assert rates(model)[0] < 0.2
    for step in range(24):
        model.observe([outcome(1, 1, request=f"s{step}")], 64)
    assert rates(model)[0] > 0.5


def test_a_request_starts_like_its_pair_and_ends_trusting_itself() -> None:
    """In a batch of 70 % and one request of 20 %, the newcomer is taken for one of the many, the known one is not."""
    model, random = AcceptanceModel(), np.random.default_rng(1)
    for _ in range(150):
        model.observe(
            [outcome(1, int(random.random() < 0.7), request=f"r{n}") for n in range(8)]
            + [outcome(1, int(random.random() < 0.2), request="poor")],
            9,
        )
    found = survival(model, ["r1", "poor", "new"], 2)
    assert found[0, 0] == pytest.approx(0.7, abs=0.1)
    assert found[1, 0] == pytest.approx(0.2, abs=0.12)
    assert rates(model)[0] <= found[2, 0] <= rates(model)[0] + 0.1
    model.forget("poor")
    assert survival(model, ["poor"], 1)[0, 0] == pytest.approx(found[2, 0], abs=0.05)


@pytest.mark.parametrize(("differ", "low", "high"), [(0.0, 0.0, 0.09), (0.2, 0.14, 0.25)])
def test_how_much_requests_differ_is_learned(differ: float, low: float, high: float) -> None:
    """Among requests of one kind the spread shrinks towards what chance explains; among two kinds it is found."""
    model, random = AcceptanceModel(), np.random.default_rng(2)
    for number in range(150):
        rate = 0.6 + (differ if number % 2 else -differ)
        for _ in range(60):
            model.observe([outcome(1, int(random.random() < rate), request=f"r{number}")], 1)
        model.forget(f"r{number}")
    assert low <= model.spread <= high


def test_survival_falls_with_position() -> None:
    """However lucky a request was, a later position is never likelier to be kept than an earlier one."""
    model = AcceptanceModel()
    for _ in range(40):
        model.observe([outcome(6, 6)], 7)
    found = survival(model, ["r"], 8)
    assert (np.diff(found) <= 0).all()
    assert (found <= 1.0).all()


def test_priors_are_weighted_evidence_and_count_once() -> None:
    """A new replica believes what it is handed, a busy one itself, and handing in twice changes nothing."""
    prior = AcceptancePrior("draft", "greedy", rates=(0.9, 0.8), weights=(200.0, 100.0))
    fresh, busy = AcceptanceModel(), AcceptanceModel()
    for step in range(1000):
        busy.observe([outcome(1, step % 2, request=f"r{step}")], 1)
    for model in (fresh, busy):
        model.adopt([prior])
    assert rates(fresh)[:2] == pytest.approx([0.9, 0.8], abs=0.05)
    assert rates(busy)[0] == pytest.approx(0.5, abs=0.05)
    once = rates(fresh)
    fresh.adopt([prior])
    assert rates(fresh) == once


def test_priors_travel_whole() -> None:
    """What one model hands on, the next one estimates."""
    model, random = AcceptanceModel(), np.random.default_rng(0)
    for step in range(400):
        model.observe(
            [outcome(3, int(random.integers(4))), outcome(2, 1, request=f"l{step}", proposer="lookup", match=3)], 3
        )
    heir = AcceptanceModel()
    heir.adopt(model.priors())
    assert {(p.proposer, p.verifier) for p in model.priors()} == {("draft", "greedy"), ("lookup", "greedy")}
    assert rates(heir)[:3] == pytest.approx(rates(model)[:3], abs=0.05)


def test_requests_that_come_and_go_never_share_evidence() -> None:
    """Whoever is still running keeps its own estimate while others leave and newcomers take their places."""
    model = AcceptanceModel()
    for number in range(100):
        model.observe([outcome(1, 1, request="lucky")] + [outcome(1, 0, request=f"r{number + i}") for i in (0, 1)], 3)
        model.forget(f"r{number}")
    lucky, newcomer = survival(model, ["lucky", "r100"], 1)[:, 0]
    assert lucky > 0.75
    assert newcomer < 0.4


def test_memory_of_finished_requests_is_given_back() -> None:
    """Thousands of requests that came and went leave nothing behind."""
    model = AcceptanceModel()
    for number in range(3000):
        model.observe([outcome(2, 1, request=f"r{number}")], 1)
        model.forget(f"r{number}")
    assert len(model._own) == 0
    assert model._own.excess.shape == (2, 64)
