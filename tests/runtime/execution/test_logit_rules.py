"""Adjusted logits: as vLLM and transformers define them, row by row for the row's own text, and no row besides."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from markov import MarkovModel, ToyRequest, adjusted, generate
from smartspec.execution.logit_rules import LogitRules, Span
from smartspec.policy.types import Verifier
from smartspec.scheduling.request import LogitRule, Request, RuledText, SamplingParams
from smartspec.scheduling.stopping import finish_reason_at

VOCAB = 40
TARGET = MarkovModel.random(VOCAB, 1)
DRAFT = MarkovModel(TARGET.table + MarkovModel.random(VOCAB, 2, 0.7).table)
RULED = [
    {"presence_penalty": 1.2},
    {"frequency_penalty": -0.7},
    {"repetition_penalty": 1.4},
    {"logit_bias": ((3, 2.5), (7, -100.0))},
    {"min_tokens": 9, "stop_token_ids": frozenset(range(1, 40, 3))},
    {"allowed_token_ids": tuple(range(0, 40, 3))},
    {"bad_words": tuple((a, b) for a in range(VOCAB) for b in range(a % 3, VOCAB, 3))},
    {"bad_words": (*((a,) for a in range(0, 24, 2)), *((a, b, 3) for a in range(1, 9, 2) for b in range(1, VOCAB, 2)))},
    {
        "presence_penalty": -0.3,
        "frequency_penalty": 0.6,
        "repetition_penalty": 0.8,
        "logit_bias": ((0, 1.0), (2, -3.0)),
        "min_tokens": 4,
        "stop_token_ids": frozenset({2}),
    },
]


class NoRepeat(LogitRule):
    """A rule with its own state: no token that the text has had in its last twelve."""

    def __init__(self) -> None:
        self.output: list[int] = []

    def adjust(self, logits: Tensor, text: RuledText, ahead: Sequence[int], first: int) -> None:
        """Ban the last twelve tokens of each row's text."""
        self.output += text.output_from(len(self.output))
        for row in range(len(ahead) + 1 - first):
            recent = [*self.output, *ahead[: first + row]][-12:]
            logits[row, [token for token in recent if token < logits.shape[1]]] = -torch.inf


tokens = st.lists(st.integers(0, VOCAB - 1), max_size=12)
few = st.lists(st.integers(0, 5), max_size=12)
"""Texts in which bad words of the same few tokens come up."""


@settings(max_examples=60, deadline=None)
@given(
    sampling=st.builds(
        SamplingParams,
        presence_penalty=st.sampled_from([0.0, 1.5, -0.4]),
        frequency_penalty=st.sampled_from([0.0, 0.8, -1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.7, 0.6]),
        logit_bias=st.sampled_from([(), ((3, 5.0), (11, -100.0))]),
        allowed_token_ids=st.sampled_from([(), tuple(range(0, VOCAB, 2))]),
        bad_words=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple), max_size=6).map(tuple),
        min_tokens=st.integers(0, 6),
        stop_token_ids=st.sampled_from([frozenset(), frozenset({4, 11})]),
    ),
    prompt=(tokens | few).filter(bool),
    portions=st.lists(st.tuples(tokens | few, tokens | few), min_size=1, max_size=4),
)
def test_every_row_is_adjusted_for_its_own_text(
    sampling: SamplingParams, prompt: list[int], portions: list[tuple[list[int], list[int]]]
) -> None:
    """Whatever was committed at once, whatever was proposed and dropped: each row is what the formula says."""
    committed = list(prompt)
    text = RuledText.of(sampling, committed, len(prompt))
    rules = LogitRules()
    for output, ahead in portions:
        committed += output
        logits = torch.randn(len(ahead) + 3, VOCAB, generator=torch.Generator().manual_seed(len(committed))) * 3
        before = logits.clone()
        if text is not None:
            rules.adjust(logits, [Span(1, text, ahead)])
        assert torch.equal(logits[[0, -1]], before[[0, -1]]), "a neighbour was touched"
        for row in range(len(ahead) + 1):
            output_so_far = [*committed[len(prompt) :], *ahead[:row]]
            expected = adjusted(before[1 + row].double().numpy(), sampling, prompt, output_so_far)
            assert logits[1 + row].tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-5)
        if text is not None and ahead:
            alone = before[-2:-1].clone()
            rules.adjust(alone, [Span(0, text, ahead, len(ahead))])
            assert torch.equal(alone[0], logits[len(ahead) + 1]), "the draft's row differs from the target's"


def test_repetition_and_bias_are_those_of_transformers() -> None:
    """Bias before repetition, prompt and output alike: bit for bit what generate() does."""
    prompt, output = [3, 4, 4, 9], [9, 1, 0]
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)) * 4
    ids = torch.tensor([[*prompt, *output]])
    bias = {(3,): 2.0, (20,): -4.5}
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, SequenceBiasLogitsProcessor(bias)(ids, logits.clone()))
    sampling = SamplingParams(repetition_penalty=1.3, logit_bias=((3, 2.0), (20, -4.5)))
    text = RuledText.of(sampling, [*prompt, *output], len(prompt))
    assert text is not None
    LogitRules().adjust(logits, [Span(0, text)])
    assert torch.equal(logits, expected)


def test_a_draft_with_fewer_tokens_is_adjusted_where_it_can_be() -> None:
    """Tokens of the text that the draft does not know are no error."""
    sampling = SamplingParams(
        repetition_penalty=2.0, logit_bias=((35, 1.0),), min_tokens=9, stop_token_ids=frozenset({38})
    )
    text = RuledText.of(sampling, [1, 39, 37], 1)
    assert text is not None
    logits = torch.ones(1, 30)
    LogitRules(frozenset({2, 36})).adjust(logits, [Span(0, text)])
    assert logits[0].tolist() == [1.0, 0.5, float("-inf")] + [1.0] * 27


def test_nothing_to_adjust_is_nothing_kept() -> None:
    """A request without rules has no text to follow."""
    assert RuledText.of(SamplingParams(temperature=0.4, top_k=3, stop_token_ids=frozenset({1})), [1], 1) is None


@pytest.mark.parametrize("index", range(len(RULED) + 1))
@pytest.mark.parametrize("verifier", ["greedy", "coupled"])
def test_the_text_is_the_same_for_every_k_and_proposer(index: int, verifier: Verifier) -> None:
    """Each rule, in a mixed batch: any k, varying by step, from draft or lookup, gives the text of k = 0."""
    fields = RULED[index] if index < len(RULED) else {}
    sampling = SamplingParams(temperature=0.0 if verifier == "greedy" else 0.9, **fields)  # type: ignore[arg-type]
    prompt = (0, 3, 3, 8)

    def request(lengths: tuple[int, ...], proposer: str) -> ToyRequest:
        rule = NoRepeat() if index == len(RULED) else None
        return ToyRequest(11, sampling, verifier, proposer, lengths, prompt, rule)  # type: ignore[arg-type]

    (expected,) = generate(TARGET, DRAFT, [request((0,), "draft")], 30)
    (plain,) = generate(
        TARGET, DRAFT, [ToyRequest(11, SamplingParams(temperature=sampling.temperature), verifier, prompt=prompt)], 30
    )
    assert expected != plain, "the rule changes nothing: it proves nothing"
    others = [ToyRequest(5, SamplingParams(), "coupled"), ToyRequest(6, SamplingParams(top_k=4), "rejection")]
    speculating = [request(k, p) for k in ((1,), (2,), (5,), (3, 0, 7, 1, 4)) for p in ("draft", "lookup")]
    texts = generate(TARGET, DRAFT, [*others, *speculating, *others], 30)
    assert set(texts[2:-2]) == {expected}
    assert texts[0] == generate(TARGET, DRAFT, [replace(others[0], lengths=(0,))], 30)[0]


def test_rules_are_followed_while_drafting() -> None:
    """A draft equal to the target stays right under every rule: nothing is rejected, so steps are few."""
    for fields in [*RULED, {}]:
        sampling = SamplingParams(temperature=0.7, **fields)  # type: ignore[arg-type]
        draft = MarkovModel(TARGET.table)
        rule = None if fields else NoRepeat()
        generate(TARGET, draft, [ToyRequest(3, sampling, "coupled", "draft", (4,), rule=rule)], 25)
        assert len(draft.calls) == 5 * 4


def test_bad_words_end_where_the_output_does() -> None:
    """The prompt is no part of a word; speculated tokens are, and one word may end within another."""
    text = RuledText.of(SamplingParams(bad_words=((4, 5), (5, 6, 7), (6, 7, 1), (9,))), [3, 4], 1 + 1)
    assert text is not None
    logits = torch.zeros(4, VOCAB)
    LogitRules().adjust(logits, [Span(0, text, (5, 6, 7))])
    assert [sorted((row == -torch.inf).nonzero().flatten().tolist()) for row in logits] == [[9], [9], [7, 9], [1, 9]]


def test_a_ban_that_leaves_nothing_is_lifted() -> None:
    """A grammar is never broken, a draft may know no token that is allowed, and every row has a token to choose."""
    sampling = SamplingParams(allowed_token_ids=(1, 3), bad_words=((2,), (3,)), min_tokens=9)
    text = RuledText.of(sampling, [1, 5], 1, Ending())
    assert text is not None
    logits = torch.zeros(3, 6)
    LogitRules(frozenset({1, 2})).adjust(logits, [Span(0, text, (3, 3))])
    finite = [row.isfinite().nonzero().flatten().tolist() for row in logits]
    assert finite == [[1], [2], [2]]
    narrow = torch.zeros(1, 1)
    LogitRules().adjust(narrow, [Span(0, text)])
    assert narrow.isfinite().all()


class Ending(LogitRule):
    """Nothing but token 2 may follow, once the output has two tokens."""

    def adjust(self, logits: Tensor, text: RuledText, ahead: Sequence[int], first: int) -> None:
        """Leave one token."""
        for row in range(len(ahead) + 1 - first):
            if text.num_output_tokens + first + row >= 2:
                logits[row, torch.arange(logits.shape[1]) != 2] = -torch.inf


def test_a_rule_that_lets_nothing_else_follow_may_end_before_min_tokens() -> None:
    """Where it leaves a choice, endings stay banned; where it leaves none, no row is without a token."""
    sampling = SamplingParams(min_tokens=9)
    text = RuledText.of(sampling, [1, 5], 1, Ending())
    assert text is not None
    logits = torch.zeros(3, 6)
    LogitRules(frozenset({2, 4})).adjust(logits, [Span(0, text, (3, 3))])
    finite = [row.isfinite().nonzero().flatten().tolist() for row in logits]
    assert finite == [[0, 1, 3, 5], [2], [2]]
    request = Request("a", [1], sampling, 0, 0.0, eos_token_ids=frozenset({2, 4}), rule=Ending())
    request.token_ids += [5, 3, 2]
    assert finish_reason_at(request, 2, 100) == "stop"
    free = Request("b", [1], sampling, 0, 0.0, eos_token_ids=frozenset({2, 4}))
    free.token_ids += [5, 3, 2]
    assert finish_reason_at(free, 2, 100) is None
