"""Verification: what is accepted, what replaces it, and that nobody's neighbours matter."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from torch import Tensor

from markov import MarkovModel, ToyRequest, generate
from smartspec.execution.logit_rules import LogitRules
from smartspec.execution.proposers import Drafts
from smartspec.execution.verifier import VerificationRow, residual_log_probs, verify
from smartspec.policy.types import Verifier
from smartspec.scheduling.output import Proposal, SchedulerOutput
from smartspec.scheduling.request import RuledText, SamplingParams

VOCAB = 50
GREEDY = SamplingParams(temperature=0.0)
TARGET = MarkovModel.random(VOCAB, 1)
DRAFT = MarkovModel(TARGET.table + MarkovModel.random(VOCAB, 2, 0.7).table)


def peaks(*tokens: int) -> Tensor:
    """Logits whose most probable tokens are *tokens*, row by row."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB).float() * 5


def row(
    proposal: tuple[int, ...] = (),
    *,
    sampling: SamplingParams = GREEDY,
    verifier: Verifier = "greedy",
    draft_probs: Tensor | None = None,
    output: tuple[int, ...] = (),
) -> VerificationRow:
    """A request with four prompt tokens and *output* that proposed these tokens."""
    ruled = RuledText.of(sampling, (0, 0, 0, 0, *output), 4)
    nodes = Proposal.chain(proposal) if proposal else None
    return VerificationRow(sampling, 1, 4 + len(output), verifier, nodes, draft_probs, ruled)


@pytest.mark.parametrize(
    ("proposal", "token_ids", "accepted"),
    [
        ((), (1,), 0),
        ((1, 2), (1, 2, 3), 2),
        ((1, 9), (1, 2), 1),
        ((9, 2), (1,), 0),
    ],
)
def test_greedy_accepts_while_equal(proposal: tuple[int, ...], token_ids: tuple[int, ...], accepted: int) -> None:
    """The first mismatch is replaced by the target's token; when all stand, one more follows."""
    (result,) = verify(peaks(1, 2, 3)[: len(proposal) + 1], [row(proposal)])
    assert (result.token_ids, result.num_drafted, result.num_accepted) == (token_ids, len(proposal), accepted)


def test_nothing_to_verify_is_no_error() -> None:
    """An empty step gives an empty result."""
    assert verify(torch.empty(0, VOCAB), []) == []


def test_a_tree_is_refused_by_name() -> None:
    """Until trees are verified, they are not silently taken for chains."""
    tree = structs.replace(row((1, 2)), proposal=Proposal((1, 2), (-1, -1)))
    with pytest.raises(ValueError, match="proposal must be a chain"):
        verify(peaks(1, 2, 3), [tree])


def test_mismatched_shapes_are_refused() -> None:
    """Too few logits, or probabilities of another length, name what was expected."""
    with pytest.raises(ValueError, match="logits must have 3 rows"):
        verify(peaks(1, 2), [row((1, 2))])
    with pytest.raises(ValueError, match="draft_probs must have 2 rows, got 1"):
        verify(peaks(1, 2, 3), [row((1, 2), draft_probs=torch.ones(1, VOCAB))])


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_temperature_zero_is_greedy_whatever_the_verifier(verifier: Verifier) -> None:
    """A distribution with one token needs no noise."""
    (result,) = verify(peaks(1, 2, 3), [row((1, 5), verifier=verifier)])
    assert result.token_ids == (1, 2)


def test_greedy_text_is_the_same_for_every_k_and_proposer() -> None:
    """At temperature 0 speculation changes nothing."""
    alone = ToyRequest(1, GREEDY, "greedy", lengths=(0,))
    (expected,) = generate(TARGET, DRAFT, [alone], 24)
    speculating = [replace(alone, lengths=(k,), proposer=p) for k in range(1, 6) for p in ("draft", "lookup")]
    assert set(generate(TARGET, DRAFT, speculating, 24)) == {expected}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 64),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 8]),
    top_p=st.sampled_from([1.0, 0.8]),
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=6),
    data=st.data(),
)
def test_coupled_text_depends_on_seed_alone(
    seed: int, temperature: float, top_k: int, top_p: float, lengths: list[int], data: st.DataObject
) -> None:
    """Any k, varying by step, any proposer, any company: the same seed gives the same text."""
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    alone = ToyRequest(seed, sampling, "coupled", lengths=(0,))
    (expected,) = generate(TARGET, DRAFT, [alone], 20)
    others = [
        ToyRequest(i, replace(sampling, top_k=i), data.draw(st.sampled_from(["coupled", "rejection"])), lengths=(i,))
        for i in range(4)
    ]
    texts = generate(
        TARGET,
        DRAFT,
        [
            *others[:2],
            replace(alone, lengths=tuple(lengths)),
            *others[2:],
            replace(alone, lengths=tuple(lengths), proposer="lookup"),
        ],
        20,
    )
    assert texts[2] == expected
    assert texts[5] == expected


def test_coupled_drafts_are_often_right() -> None:
    """Sharing the target's noise pays: far more is accepted than by chance."""
    accepted = 0

    def count(plan: SchedulerOutput, drafts: Drafts) -> Drafts:
        nonlocal accepted
        rows = [
            VerificationRow(SamplingParams(), r.noise_seed, 1, "coupled", drafts.proposals[r.request_id])
            for r in plan.scheduled
        ]
        inputs = [token for r in rows if r.proposal for token in (0, *r.proposal.token_ids)]
        accepted = sum(result.num_accepted for result in verify(TARGET.table[inputs], rows))
        return drafts

    requests = [ToyRequest(seed, SamplingParams(), "coupled", lengths=(1,)) for seed in range(400)]
    generate(TARGET, DRAFT, requests, 1, tamper=count)
    assert accepted / 400 > 0.5


def test_rejection_keeps_a_draft_that_equals_the_target() -> None:
    """With equal distributions nothing is ever rejected."""
    probs = torch.softmax(TARGET.table[:4], dim=1)
    rows = [
        VerificationRow(SamplingParams(), s, 0, "rejection", Proposal.chain((s % VOCAB,) * 4), probs) for s in range(64)
    ]
    results = verify(TARGET.table[:5].repeat(64, 1), rows)
    assert {r.num_accepted for r in results} == {4}


def test_a_bonus_token_is_drawn_by_the_noise_of_its_own_position() -> None:
    """After two accepted tokens it is the token that coupled sampling would draw two positions on."""
    logits = TARGET.table[:3]
    for seed in range(20):
        sure = VerificationRow(SamplingParams(), seed, 4, "rejection", Proposal.chain((1, 2)), torch.zeros(2, VOCAB))
        plain = VerificationRow(SamplingParams(), seed, 6, "coupled")
        (bonus,), (alone,) = verify(logits, [sure]), verify(logits[2:], [plain])
        assert bonus.token_ids == (1, 2, *alone.token_ids)


def test_rejection_never_keeps_what_the_target_rules_out() -> None:
    """A token outside the target's top-k is rejected, and recovered from inside it."""
    logits = TARGET.table[:2]
    kept = logits[0].topk(3).indices.tolist()
    outside = next(t for t in range(VOCAB) if t not in kept)
    probs = torch.nn.functional.one_hot(torch.tensor([outside]), VOCAB).float()
    rows = [
        VerificationRow(SamplingParams(top_k=3), s, 0, "rejection", Proposal.chain((outside,)), p)
        for s in range(32)
        for p in (probs, None)
    ]
    for result in verify(logits.repeat(64, 1), rows):
        assert result.num_accepted == 0
        assert result.token_ids[0] in kept


def test_the_residual_is_what_the_draft_left_out() -> None:
    """Positive differences only, also beyond a narrower draft vocabulary; without any, the target itself."""
    target = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    draft = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    residual = residual_log_probs(target.log(), draft).exp()
    assert residual[0].tolist() == pytest.approx([0.3, 0.0, 0.2])
    assert residual[1].tolist() == pytest.approx([0.0, 0.0, 0.2])
    assert torch.equal(residual_log_probs(target.log(), target), target.log())


def test_results_do_not_depend_on_the_batch() -> None:
    """Verifiers, lengths, filters and min_tokens mixed: each request gets what it gets alone, logprobs included."""
    generator = torch.Generator().manual_seed(3)
    rows, logits = [], []
    for i in range(33):
        length = i % 5
        verifier: Verifier = ("greedy", "coupled", "rejection")[i % 3]
        sampling = SamplingParams(
            temperature=0.0 if verifier == "greedy" else 0.5 + i / 30,
            top_k=(0, 10)[i % 2],
            top_p=(1.0, 0.9, 1.0, 0.7)[i % 4],
            min_tokens=i % 7,
            stop_token_ids=frozenset({i}),
            logprobs=i if i % 4 == 1 else None,
            repetition_penalty=(1.0, 1.3)[i % 5 == 2],
            presence_penalty=(0.0, 0.5)[i % 3 == 1],
            logit_bias=((i, 2.0),) if i % 6 == 5 else (),
        )
        proposal = torch.randint(VOCAB, (length,), generator=generator).tolist()
        probs = torch.rand(length, VOCAB, generator=generator).log_softmax(1).exp() if i % 2 and length else None
        rows.append(
            structs.replace(
                row(tuple(proposal), sampling=sampling, verifier=verifier, draft_probs=probs, output=(7,) * (i % 3)),
                noise_seed=i,
            )
        )
        logits.append(torch.randn(length + 1, VOCAB, generator=generator) * 2)
    rules = LogitRules(frozenset({0}))
    together = verify(torch.cat(logits), rows, rules)
    alone = [verify(part, [one], rules)[0] for part, one in zip(logits, rows, strict=True)]
    assert together == alone
    assert [len(r.logprobs) for r in together] == [
        len(r.token_ids) if one.sampling.logprobs is not None else 0 for r, one in zip(together, rows, strict=True)
    ]


def test_logprobs_are_raw() -> None:
    """Temperature, filters and bans do not show in the reported log probability."""
    sampling = SamplingParams(temperature=0.3, top_k=1, min_tokens=1, stop_token_ids=frozenset({1}), logprobs=2)
    logits = peaks(1, 2)
    (result,) = verify(logits.clone(), [row((7,), sampling=sampling, verifier="coupled")])
    assert result.token_ids[0] != 1
    expected = logits[0].log_softmax(0)
    (scored,) = result.logprobs
    assert scored.logprob == pytest.approx(expected[result.token_ids[0]].item())
    assert scored.top[0] == (1, pytest.approx(expected[1].item()))


def test_endings_wait_for_min_tokens_inside_a_proposal() -> None:
    """Accepted draft tokens count: the ban ends in the middle of a chain."""
    sampling = replace(GREEDY, min_tokens=3)
    logits = peaks(1, 1, 1, 1)
    logits[:, 2] = 4.0
    (result,) = verify(logits, [row((2, 2, 1), sampling=sampling, output=(2,))], LogitRules(frozenset({1})))
    assert result.token_ids == (2, 2, 1, 1)
