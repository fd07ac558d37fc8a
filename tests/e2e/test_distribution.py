"""Lossless through the whole engine: texts follow the target's exact law whatever the scheduler and the policy do.

A tiny random model pair with 16 tokens, so that the law of four tokens can be written down. Tens of thousands of
requests of all verifiers run together, with random k from both proposers and too few blocks, so that many are
preempted.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from integer_model import RandomPolicy
from markov import Floats, Tamper, adjusted, fit, probabilities, with_lengths
from smartspec.config import SchedulerConfig
from smartspec.engine import Engine
from smartspec.execution import verifier
from smartspec.execution.model_runner import ModelRunner
from smartspec.execution.noise import Purpose
from smartspec.execution.paged_model import PagedModel
from smartspec.execution.proposers import Drafts, Proposer
from smartspec.policy.types import Verifier
from smartspec.scheduling.output import SchedulerOutput
from smartspec.scheduling.request import Request, SamplingParams
from smartspec.scheduling.scheduler import Scheduler

VOCAB, NUM_TOKENS, BLOCK_SIZE, BATCH = 16, 4, 1, 768
# Whatever comes first, prompt lookup has probably seen it after a 15.
PROMPT = (15, 0, 15, 3, 15, 6, 15, 9, 15)
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)
PLAIN = SamplingParams(temperature=1.2, max_tokens=NUM_TOKENS)
RULED = SamplingParams(
    temperature=0.9,
    presence_penalty=0.6,
    frequency_penalty=-0.8,
    repetition_penalty=1.5,
    logit_bias=((2, 1.0), (7, -2.0)),
    min_tokens=NUM_TOKENS,
    stop_token_ids=frozenset({5, 11}),
    max_tokens=NUM_TOKENS,
)
FILTERED = SamplingParams(temperature=0.9, top_k=9, top_p=0.9, min_p=0.02, max_tokens=NUM_TOKENS)
KINDS: dict[tuple[Verifier, SamplingParams], int] = {
    ("rejection", PLAIN): 10_000,
    ("rejection", FILTERED): 5_000,
    ("rejection", RULED): 4_000,
    ("coupled", PLAIN): 2_000,
    ("greedy", GREEDY): 200,
}


@dataclass(frozen=True)
class Outcome:
    """Texts by kind, in the order of their seeds, and what happened on the way."""

    texts: dict[tuple[Verifier, SamplingParams], list[tuple[int, ...]]]
    drafted: Counter[str]
    accepted: Counter[str]
    num_preempted: int


class TamperedProposer(Proposer):
    """The real one, and a bug on top."""

    def __init__(self, draft: PagedModel, tamper: Tamper) -> None:
        super().__init__(draft)
        self._tamper = tamper

    def propose(self, plan: SchedulerOutput) -> Drafts:
        """What is left after the bug."""
        return self._tamper(plan, super().propose(plan))


def random_model(num_layers: int, seed: int) -> LlamaForCausalLM:
    """A Llama of two heads that knows 16 tokens."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@cache
def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A target, and a draft that knows nothing of it: half of what it says is rejected, so that bugs show."""
    return random_model(2, seed=5), random_model(1, seed=6)


def run(
    kinds: dict[tuple[Verifier, SamplingParams], int],
    policy: RandomPolicy,
    *,
    num_blocks: int = 16 * BATCH,
    first_seed: int = 0,
    tamper: Tamper | None = None,
) -> Outcome:
    """Serve so many requests of each of *kinds*, mixed, to their end; seeds count up from *first_seed*."""
    target, draft = (PagedModel(copy.deepcopy(m), num_blocks=num_blocks, block_size=BLOCK_SIZE) for m in models())
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=BATCH, max_num_batched_tokens=8 * BATCH, block_size=BLOCK_SIZE),
        policy,
        num_blocks=num_blocks,
        max_model_len=64,
        proposers=("draft", "lookup"),
    )
    proposer = Proposer(draft) if tamper is None else TamperedProposer(draft, tamper)
    engine: Engine[Drafts] = Engine(scheduler, proposer, ModelRunner(target), clock=lambda: 0.0)
    requests = [(kind, first_seed + i) for kind, number in kinds.items() for i in range(number)]
    order = np.random.default_rng(0).permutation(len(requests))
    for i in order:
        (verifier, sampling), seed = requests[i]
        scheduler.add(Request(str(i), list(PROMPT), sampling, seed, 0.0, verifier=verifier))
    texts: list[list[int]] = [[] for _ in requests]
    drafted, accepted, num_preempted = Counter[str](), Counter[str](), 0
    while scheduler.has_work:
        output = engine.step()
        for result in output.outputs:
            texts[int(result.request_id)] += result.new_token_ids
        assert output.stats is not None
        num_preempted += output.stats.num_preempted
        drafted.update(output.stats.drafted_by_proposer)
        accepted.update(output.stats.accepted_by_proposer)
    scheduler.check_idle()
    by_kind = {kind: [tuple(t) for (k, _), t in zip(requests, texts, strict=True) if k == kind] for kind in kinds}
    return Outcome(by_kind, drafted, accepted, num_preempted)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """Everything mixed: once with room to speculate, once with so few blocks that preemption never ends."""
    ample = run(KINDS, RandomPolicy(seed=1))
    scarce = run(KINDS, RandomPolicy(seed=2), num_blocks=3 * BATCH, first_seed=1 << 40)  # they share their prompt
    assert min(scarce.drafted.values()) > 100
    return Outcome(
        {kind: ample.texts[kind] + scarce.texts[kind] for kind in KINDS},
        ample.drafted + scarce.drafted,
        ample.accepted + scarce.accepted,
        scarce.num_preempted,
    )


@cache
def target_logits() -> tuple[Floats, ...]:
    """The target's own logits after the prompt and each possible text of 0 to 3 tokens, [vocab, ..., vocab]."""
    target, _ = models()
    result = []
    for length in range(NUM_TOKENS):
        inputs = torch.tensor([[*PROMPT, *text] for text in product(range(VOCAB), repeat=length)])
        with torch.inference_mode():
            logits = torch.cat([target(part).logits[:, -1] for part in inputs.split(1024)])
        result.append(logits.double().numpy().reshape((VOCAB,) * (length + 1)))
    return tuple(result)


@cache
def law(sampling: SamplingParams) -> Floats:
    """The exact joint law of the text, one axis per token."""
    joint = np.ones(())
    for logits in target_logits():
        texts = product(range(VOCAB), repeat=logits.ndim - 1)
        rows = [
            probabilities(adjusted(row, sampling, PROMPT, text), sampling)
            for row, text in zip(logits.reshape(-1, VOCAB), texts, strict=True)
        ]
        joint = joint[..., None] * np.stack(rows).reshape(logits.shape)
    return joint


def fit_of(outcome: Outcome, kind: tuple[Verifier, SamplingParams], tokens: tuple[int, ...]) -> float:
    """The chi-square p-value of some tokens of the texts of one kind."""
    others = tuple(axis for axis in range(NUM_TOKENS) if axis not in tokens)
    texts = [tuple(text[i] for i in tokens) for text in outcome.texts[kind]]
    return fit(texts, law(kind[1]).sum(axis=others))


def test_everything_was_mixed(outcome: Outcome) -> None:
    """Both proposers drafted, were partly accepted, and requests were preempted: or the tests below show nothing."""
    assert outcome.num_preempted > 500
    for proposer in ("draft", "lookup"):
        assert outcome.drafted[proposer] > 2000
        assert 0.02 < outcome.accepted[proposer] / outcome.drafted[proposer] < 0.95
    assert all(len(text) == NUM_TOKENS for texts in outcome.texts.values() for text in texts)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind[0] != "greedy"], ids=["plain", "filtered", "ruled", "coupled"]
)
@pytest.mark.parametrize("tokens", [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (2, 3), (1, 2, 3)], ids=str)
def test_texts_follow_the_targets_law(
    outcome: Outcome, kind: tuple[Verifier, SamplingParams], tokens: tuple[int, ...]
) -> None:
    """Chi-square of the first and later tokens, alone and jointly, under the same mixture."""
    assert fit_of(outcome, kind, tokens) > 1e-4


def test_greedy_texts_are_the_targets_most_probable(outcome: Outcome) -> None:
    """At temperature 0 there is one text."""
    text: tuple[int, ...] = ()
    for logits in target_logits():
        text = (*text, int(logits[text].argmax()))
    assert set(outcome.texts["greedy", GREEDY]) == {text}


def test_coupled_texts_are_those_without_speculation(outcome: Outcome) -> None:
    """Seed by seed, the text is the one that a quiet engine without speculation gives."""
    kind = ("coupled", PLAIN)
    quiet = run({kind: 300}, RandomPolicy(fixed_k=0))
    assert not quiet.drafted
    assert not quiet.num_preempted
    assert outcome.texts[kind][:300] == quiet.texts[kind]


def p_value_with_bug(tamper: Tamper | None = None) -> float:
    """How well the first two tokens fit when a bug is planted: the first is prefill's, the second speculation's."""
    kind = ("rejection", PLAIN)
    return fit_of(run({kind: 20_000}, RandomPolicy(fixed_k=2, proposer="draft"), tamper=tamper), kind, (0, 1))


def test_noise_reused_in_recovery_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery by the draft's own noise shows through the engine."""
    reused = SimpleNamespace(TOKEN=Purpose.TOKEN, ACCEPT=Purpose.ACCEPT, RECOVER=Purpose.DRAFT)
    monkeypatch.setattr(verifier, "Purpose", reused)
    assert p_value_with_bug() < 1e-9


def test_recovery_from_the_plain_target_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does a recovery that forgets what the draft took already."""

    def plain_target(target_log_probs: Tensor, draft_probs: Tensor) -> Tensor:
        return target_log_probs

    monkeypatch.setattr(verifier, "residual_log_probs", plain_target)
    assert p_value_with_bug() < 1e-9


def drop_by_drawn_token(plan: SchedulerOutput, drafts: Drafts) -> Drafts:
    """The bug: a position is dropped because the token drawn there is improbable."""
    lengths: dict[str, int] = {}
    for key, probs in drafts.draft_probs.items():
        sure = [bool(probs[j, token] > 0.15) for j, token in enumerate(drafts.proposals[key].token_ids)]
        lengths[key] = [*sure, False].index(False)
    return with_lengths(drafts, lengths)


def budget_by_fresh_confidence(plan: SchedulerOutput, drafts: Drafts) -> Drafts:
    """The bug: all positions or none are verified, by how sure the draft is of the last one."""
    unsure = [key for key, probs in drafts.draft_probs.items() if probs[-1].max() < 0.4]
    return with_lengths(drafts, dict.fromkeys(unsure, 0))


@pytest.mark.parametrize("bug", [drop_by_drawn_token, budget_by_fresh_confidence])
def test_lengths_that_depend_on_drawn_tokens_are_caught(bug: Tamper) -> None:
    """And so do the two ways of looking at drawn tokens before deciding what to verify."""
    assert p_value_with_bug(bug) < 1e-9
