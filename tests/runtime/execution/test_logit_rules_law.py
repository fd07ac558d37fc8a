"""Rules under rejection sampling: chi-square of joint tokens against a law that depends on the whole text so far."""

from itertools import product

import numpy as np
import pytest

from markov import Floats, MarkovModel, ToyRequest, adjusted, fit, generate, probabilities
from smartspec.execution.logit_rules import LogitRules, Span
from smartspec.scheduling.request import SamplingParams

VOCAB, NUM_TEXTS, NUM_TOKENS = 6, 6_000, 3
LAWFUL, UNLAWFUL = 1e-3, 1e-9
TARGET = MarkovModel.random(VOCAB, 1)
DRAFT = MarkovModel.random(VOCAB, 2, 1.0)
PROMPT = (4, 2, 4)
RULED = SamplingParams(
    temperature=0.9,
    presence_penalty=0.7,
    frequency_penalty=-0.9,
    repetition_penalty=1.8,
    logit_bias=((0, 1.0), (3, -1.5)),
    min_tokens=2,
    stop_token_ids=frozenset({1}),
)


def law_of_text(sampling: SamplingParams) -> Floats:
    """The joint law of the tokens after `PROMPT`, text by text, by the definitions of the parameters."""
    table = TARGET.table.double().numpy()
    law = np.ones((VOCAB,) * NUM_TOKENS)
    for text in product(range(VOCAB), repeat=NUM_TOKENS):
        for i, token in enumerate(text):
            row = adjusted(table[[PROMPT[-1], *text][i]], sampling, PROMPT, text[:i])
            law[text] *= probabilities(row, sampling)[token]
    return law


def p_value(**request: object) -> float:
    """How well texts drafted and verified under `RULED` fit that law."""
    requests = [ToyRequest(seed, RULED, prompt=PROMPT, **request) for seed in range(NUM_TEXTS)]  # type: ignore[arg-type]
    return fit(generate(TARGET, DRAFT, requests, NUM_TOKENS), law_of_text(RULED))


@pytest.mark.parametrize(
    "request_fields",
    [
        {"lengths": (1, 0, 3)},
        {"lengths": (3, 2), "proposer": "lookup"},
    ],
    ids=["draft", "lookup"],
)
def test_the_text_has_the_law_of_the_adjusted_target(request_fields: dict[str, object]) -> None:
    """Each token's law is adjusted for the tokens before it, accepted, recovered, bonus or still speculated."""
    assert p_value(**request_fields) > LAWFUL


def test_a_row_adjusted_for_committed_tokens_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug of those who adjust all rows of a proposal alike: the text's law is another, and the test sees it."""
    adjust = LogitRules.adjust

    def forget_what_is_ahead(self: LogitRules, logits: object, spans: list[Span]) -> None:
        alike = [Span(span.row + i, span.text) for span in spans for i in range(span.num_rows)]
        adjust(self, logits, alike)  # type: ignore[arg-type]

    monkeypatch.setattr(LogitRules, "adjust", forget_what_is_ahead)
    assert p_value(lengths=(2,)) < UNLAWFUL
