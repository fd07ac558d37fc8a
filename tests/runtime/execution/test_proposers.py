"""Drafting: who is fed what, how the active set shrinks, and with which noise tokens are drawn."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from msgspec.structs import replace

from markov import MarkovModel
from smartspec.execution.batch import Segment
from smartspec.execution.noise import Purpose, gumbel, seed_tensor, stream_keys
from smartspec.execution.proposers import Drafts, Proposer
from smartspec.execution.sampler import SamplingTensors, process_logits
from smartspec.policy.types import Decision
from smartspec.scheduling.output import Proposal, ScheduledRequest, SchedulerOutput
from smartspec.scheduling.request import RuledText, SamplingParams

VOCAB = 40
GREEDY = SamplingParams(temperature=0.0)


def scheduled(
    request_id: str, length: int, *, tokens: Sequence[int] = (3, 1, 4, 1, 5), start: int = 2
) -> ScheduledRequest:
    """A greedy request whose draft model has seen the first *start* of its tokens and is to draft *length*."""
    return ScheduledRequest(
        request_id=request_id,
        token_ids=tokens[-1:],
        start=len(tokens) - 1,
        samples=True,
        block_table=(int(request_id),),
        sampling=GREEDY,
        noise_seed=int(request_id),
        verifier="greedy",
        proposer="draft" if length else None,
        num_speculative_tokens=length,
        draft_start=start,
        catchup_token_ids=tokens[start:] if length else (),
    )


def plan(*requests: ScheduledRequest) -> SchedulerOutput:
    """A step of these requests."""
    return SchedulerOutput(requests, Decision())


def model(seed: int = 0) -> MarkovModel:
    """A random draft model."""
    return MarkovModel.random(VOCAB, seed)


def test_nothing_runs_when_nobody_drafts() -> None:
    """Without speculation the draft model is not called at all."""
    draft = model()
    assert Proposer(draft).propose(plan(scheduled("1", 0))) == Drafts()
    assert draft.calls == []


def test_lookup_tokens_are_proposed_as_they_are() -> None:
    """A copied continuation becomes a chain, cut to the granted length, with no draft model and no probabilities."""
    request = replace(scheduled("1", 0), proposer="lookup", num_speculative_tokens=2, lookup_tokens=(7, 8, 9))
    assert Proposer(None).propose(plan(request)) == Drafts(proposals={"1": Proposal.chain((7, 8))})


def test_drafting_without_a_draft_model_is_refused() -> None:
    """The error names the request."""
    with pytest.raises(ValueError, match="request 1 is to be drafted, but no draft model"):
        Proposer(None).propose(plan(scheduled("1", 2)))


def test_each_request_gets_its_own_length_over_a_shrinking_batch() -> None:
    """Requests leave the draft batch as their lengths are reached; the rest is fed one token each, where it belongs."""
    draft = model()
    drafts = Proposer(draft).propose(plan(scheduled("1", 1), scheduled("2", 3), scheduled("3", 0), scheduled("4", 2)))
    assert {key: len(p) for key, p in drafts.proposals.items()} == {"1": 1, "2": 3, "4": 2}
    assert drafts.batch_by_depth == (3, 2, 1)
    assert drafts.catchup_tokens == 9
    assert drafts.context_tokens == 3 * 5 + 2 * 6 + 7
    assert drafts.num_fed == {"1": 5, "2": 7, "4": 6}
    catchup, *steps = draft.calls
    assert [(s.token_ids, s.start, s.block_table, s.num_logits) for s in catchup] == [
        ((4, 1, 5), 2, (2,), 1),
        ((4, 1, 5), 2, (4,), 1),
        ((4, 1, 5), 2, (1,), 1),
    ]
    chain = drafts.proposals["2"].token_ids
    assert [[(list(s.token_ids), s.start) for s in step if s.block_table == (2,)] for step in steps] == [
        [([chain[0]], 5)],
        [([chain[1]], 6)],
    ]


def test_a_greedy_request_is_drafted_by_argmax() -> None:
    """Each token is the draft's most probable after the one before."""
    draft = model()
    drafts = Proposer(draft).propose(plan(scheduled("1", 3)))
    text = [5]
    for _ in range(3):
        text.append(int(draft.table[text[-1]].argmax()))
    assert drafts.proposals["1"].token_ids == tuple(text[1:])
    assert drafts.draft_probs == {}


def test_a_long_catch_up_is_cut_to_the_token_budget() -> None:
    """No forward exceeds the budget, every missing token is fed once and in place, and the draft is the same."""
    requests = [scheduled(str(i), 2, tokens=tuple(range(i, i + 9 * i)), start=i) for i in range(1, 4)]
    whole, cut = model(), model()
    expected = Proposer(whole).propose(plan(*requests))
    assert Proposer(cut, max_num_batched_tokens=7).propose(plan(*requests)) == expected
    assert len(whole.calls) == 2
    assert all(sum(len(s.token_ids) for s in call) <= 7 for call in cut.calls)
    fed: dict[tuple[int, ...], list[int]] = {}
    for segment in (s for call in cut.calls[:-1] for s in call):
        tokens = fed.setdefault(tuple(segment.block_table), [])
        assert segment.start == int(segment.block_table[0]) + len(tokens)
        tokens += segment.token_ids
    assert fed == {(i,): list(range(2 * i, 10 * i)) for i in range(1, 4)}


@pytest.mark.parametrize(("verifier", "purpose"), [("coupled", Purpose.TOKEN), ("rejection", Purpose.DRAFT)])
def test_tokens_are_drawn_by_the_noise_of_their_absolute_position(verifier: str, purpose: Purpose) -> None:
    """A coupled draft uses the target's own noise, a rejection draft its own; both under the request's processing."""
    sampling = SamplingParams(temperature=0.8, top_k=10, top_p=0.9)
    draft = model()
    request = replace(scheduled("9", 3), sampling=sampling, verifier=verifier)
    drafts = Proposer(draft).propose(plan(scheduled("1", 3), request, scheduled("2", 4)))
    text = [5]
    for depth in range(3):
        log_probs = process_logits(draft.table[text[-1:]], SamplingTensors.of([sampling]))
        key = stream_keys(seed_tensor([9]), torch.tensor([5 + depth]), purpose)
        text.append(int((log_probs[0].double() + gumbel(key, torch.arange(VOCAB))).argmax()))
        if verifier == "rejection":
            assert torch.equal(drafts.draft_probs["9"][depth], log_probs[0].exp())
    assert drafts.proposals["9"].token_ids == tuple(text[1:])
    assert list(drafts.draft_probs) == (["9"] if verifier == "rejection" else [])


def test_a_request_drafts_the_same_in_any_company() -> None:
    """Neither order nor neighbours nor their lengths change a proposal or its probabilities."""
    mixed = [
        replace(
            scheduled(str(i), 1 + i % 4), sampling=SamplingParams(temperature=0.5 + i / 20, top_k=i), verifier=verifier
        )
        for i, verifier in enumerate(("rejection", "coupled", "rejection", "greedy", "coupled", "rejection") * 2)
    ]
    together = Proposer(model()).propose(plan(*mixed))
    for request in mixed:
        alone = Proposer(model()).propose(plan(request))
        assert alone.proposals[request.request_id] == together.proposals[request.request_id]
        if request.verifier == "rejection":
            assert torch.equal(alone.draft_probs[request.request_id], together.draft_probs[request.request_id])


def test_the_draft_never_names_a_token_the_target_lacks() -> None:
    """A draft with a padded vocabulary draws, and gives probabilities, within the target's."""
    table = torch.zeros(VOCAB, VOCAB)
    table[:, 30:] = 9.0
    requests = [scheduled("1", 3), replace(scheduled("2", 3), sampling=SamplingParams(), verifier="rejection")]
    drafts = Proposer(MarkovModel(table), vocab_size=30).propose(plan(*requests))
    assert max(t for p in drafts.proposals.values() for t in p.token_ids) < 30
    assert drafts.draft_probs["2"].shape == (3, 30)
    assert drafts.draft_probs["2"].sum(dim=1) == pytest.approx([1.0] * 3)


def test_endings_are_not_drafted_before_min_tokens() -> None:
    """EOS and stop ids are banned position by position, counting the draft's own tokens."""
    table = torch.zeros(VOCAB, VOCAB)
    table[:, 2], table[:, 3], table[:, 4] = 9.0, 8.0, 7.0
    sampling = dataclasses.replace(GREEDY, min_tokens=6, stop_token_ids=frozenset({3}))
    text = RuledText.of(sampling, (3, 1, 4, 1, 5), 1)
    request = replace(scheduled("1", 4), sampling=sampling, num_output_tokens=4, ruled=text)
    drafts = Proposer(MarkovModel(table), eos_token_ids=frozenset({2})).propose(plan(request))
    assert drafts.proposals["1"].token_ids == (4, 4, 2, 2)


def test_the_draft_is_fed_whole_segments() -> None:
    """A catch-up that fits is one forward, whatever the requests' lags."""
    draft = model()
    Proposer(draft).propose(plan(scheduled("1", 1, start=4), scheduled("2", 1, start=0)))
    assert [[s.start for s in call] for call in draft.calls] == [[4, 0]]
    assert all(isinstance(s, Segment) for s in draft.calls[0])
