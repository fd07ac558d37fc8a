"""Losslessness in law: chi-square of joint tokens against the exact target, and planted bugs that it must catch.

20,000 texts of three tokens each, drafted by the real proposer, judged by the real verifier; smaller samples have
missed real bugs. Seeds are fixed, so a verdict never changes from run to run.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from torch import Tensor

from markov import MarkovModel, ToyRequest, fit, generate, law_of, with_lengths
from smartspec.execution import verifier
from smartspec.execution.noise import Purpose
from smartspec.execution.proposers import Drafts
from smartspec.scheduling.output import SchedulerOutput
from smartspec.scheduling.request import SamplingParams

VOCAB, NUM_TEXTS, NUM_TOKENS = 6, 20_000, 3
LAWFUL, UNLAWFUL = 1e-3, 1e-9
TARGET = MarkovModel.random(VOCAB, 1)
DRAFT = MarkovModel.random(VOCAB, 2, 1.0)
PLAIN = SamplingParams()
PROMPT = (4,)  # where reused noise shows most: a bias of 0.06 in total variation


def p_value(
    sampling: SamplingParams = PLAIN,
    *,
    tamper: Callable[[SchedulerOutput, Drafts], Drafts] | None = None,
    num_banned: int = 0,
    **request: object,
) -> float:
    """How well texts of this kind of request fit the target's law: first token, first two, or all; the worst."""
    requests = [ToyRequest(seed, sampling, prompt=PROMPT, **request) for seed in range(NUM_TEXTS)]  # type: ignore[arg-type]
    texts = generate(TARGET, DRAFT, requests, NUM_TOKENS, tamper=tamper)
    return min(
        fit([text[:n] for text in texts], law_of(TARGET.table, sampling, PROMPT[-1], n, num_banned))
        for n in range(1, NUM_TOKENS + 1)
    )


@pytest.mark.parametrize(
    ("sampling", "lengths"),
    [
        (PLAIN, (2,)),
        (SamplingParams(temperature=0.6), (1, 3)),
        (SamplingParams(temperature=1.4, top_k=4), (3,)),
        (SamplingParams(top_p=0.8), (4,)),
        (SamplingParams(temperature=0.9, top_k=5, top_p=0.95, min_p=0.1), (2, 0, 1)),
    ],
)
def test_rejection_sampling_has_the_targets_law(sampling: SamplingParams, lengths: tuple[int, ...]) -> None:
    """First and later tokens jointly, over sampling parameters and lengths."""
    assert p_value(sampling, lengths=lengths) > LAWFUL


def test_copied_tokens_leave_the_law_alone() -> None:
    """A deterministic proposal is judged as a one-hot draft distribution."""
    assert p_value(SamplingParams(temperature=0.9), proposer="lookup", lengths=(3, 2)) > LAWFUL


def test_coupled_sampling_has_the_targets_law() -> None:
    """Over seeds, the coupled text is distributed as the target, with min_tokens keeping endings out at first."""
    sampling = SamplingParams(temperature=0.8, min_tokens=2, stop_token_ids=frozenset({1}))
    assert p_value(sampling, verifier="coupled", num_banned=2) > LAWFUL


def test_min_tokens_hold_under_rejection_sampling() -> None:
    """Endings are ruled out before acceptance, on both sides, position by position."""
    sampling = SamplingParams(min_tokens=2, stop_token_ids=frozenset({1}))
    assert p_value(sampling, num_banned=2) > LAWFUL


def confidence(drafts: Drafts, request_id: str) -> list[float]:
    """The draft's survival estimate by position: its own top probabilities, multiplied up."""
    survival, result = 1.0, []
    for probs in drafts.draft_probs[request_id].tolist():
        survival *= max(probs)
        result.append(survival)
    return result


def rank_fresh_within_a_fixed_total(plan: SchedulerOutput, drafts: Drafts) -> Drafts:
    """Of each two requests' four positions keep exactly the three most confident: only the ranking is fresh."""
    lengths: dict[str, int] = {}
    for first, second in zip(plan.scheduled[::2], plan.scheduled[1::2], strict=False):
        ranked = sorted((-value, r.request_id) for r in (first, second) for value in confidence(drafts, r.request_id))
        for r in (first, second):
            lengths[r.request_id] = sum(key == r.request_id for _, key in ranked[:3])
    return with_lengths(drafts, lengths)


def test_ranking_by_fresh_confidence_within_a_fixed_total_is_lawful() -> None:
    """What a request's own earlier draft distributions, and other requests, decide may vary: no bias."""
    assert p_value(tamper=rank_fresh_within_a_fixed_total) > LAWFUL


def budget_by_fresh_confidence(plan: SchedulerOutput, drafts: Drafts) -> Drafts:
    """The bug: whether each two requests' drafts are verified at all depends on confidences seen after drafting."""
    lengths: dict[str, int] = {}
    for first, second in zip(plan.scheduled[::2], plan.scheduled[1::2], strict=False):
        gain = sum(confidence(drafts, first.request_id)) + sum(confidence(drafts, second.request_id))
        lengths |= {r.request_id: r.num_speculative_tokens if gain > 1.15 else 0 for r in (first, second)}
    return with_lengths(drafts, lengths)


def drop_by_drawn_token(plan: SchedulerOutput, drafts: Drafts) -> Drafts:
    """The bug: a position is dropped because the token drawn there is improbable."""
    lengths: dict[str, int] = {}
    for r in plan.scheduled:
        probs, tokens = drafts.draft_probs[r.request_id], drafts.proposals[r.request_id].token_ids
        sure = [probs[j, token] > 0.3 for j, token in enumerate(tokens)]
        lengths[r.request_id] = [*sure, False].index(False)
    return with_lengths(drafts, lengths)


@pytest.mark.parametrize("bug", [budget_by_fresh_confidence, drop_by_drawn_token])
def test_lengths_that_depend_on_drawn_tokens_are_caught(bug: Callable[[SchedulerOutput, Drafts], Drafts]) -> None:
    """The two traps of choosing lengths after drafting bias the text, and the test sees it."""
    assert p_value(tamper=bug) < UNLAWFUL


def test_noise_reused_in_recovery_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovering with the draft's own noise favours what the draft nearly drew."""
    reused = SimpleNamespace(TOKEN=Purpose.TOKEN, ACCEPT=Purpose.ACCEPT, RECOVER=Purpose.DRAFT)
    monkeypatch.setattr(verifier, "Purpose", reused)
    assert p_value() < UNLAWFUL


def test_accepting_by_the_drafts_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The uniform of acceptance may share nothing with the draw it judges."""
    reused = SimpleNamespace(TOKEN=Purpose.TOKEN, ACCEPT=Purpose.DRAFT, RECOVER=Purpose.RECOVER)
    monkeypatch.setattr(verifier, "Purpose", reused)
    assert p_value() < UNLAWFUL


def test_recovery_from_the_plain_target_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the residual, what the draft likes is drawn twice as gladly."""

    def plain_target(target_log_probs: Tensor, draft_probs: Tensor) -> Tensor:
        return target_log_probs

    monkeypatch.setattr(verifier, "residual_log_probs", plain_target)
    assert p_value() < UNLAWFUL
