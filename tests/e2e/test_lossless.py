"""Speculation changes no text: not with any policy, proposer or k, not in any company, not under preemption.

Greedy text is held to transformers' own `generate()`, sampled text with a seed to itself.
"""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine_run import config_for, prompts, run
from smartspec.config import RuntimeConfig
from smartspec.execution.inductor import missing_compiler
from smartspec.execution.loader import LoadedModel, load
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer, Verifier
from smartspec.scheduling.request import Request, SamplingParams

NUM_TOKENS = 40
MAX_SMALL_GAP = 1e-4
"""Two tokens whose reference logits are closer than this may come out either way: float32 sums in another order."""

OFF = PolicySettings(policy="off")
EVERY_POLICY = [
    OFF,
    *(PolicySettings(policy="fixed", max_speculative_tokens=k) for k in range(1, 9)),
    PolicySettings(policy="batch"),
    PolicySettings(policy="request"),
]
PROPOSERS: list[tuple[Proposer, ...]] = [("draft",), ("lookup",), ("draft", "lookup")]


def name_of(settings: PolicySettings) -> str:
    """What to call *settings* in a test's name."""
    return f"{settings.policy}{settings.max_speculative_tokens if settings.policy == 'fixed' else ''}"


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> tuple[RuntimeConfig, LoadedModel]:
    """The tiny pair in float32."""
    config = config_for(tmp_path_factory.mktemp("float32"), "float32")
    return config, load(config)


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> tuple[RuntimeConfig, LoadedModel]:
    """The tiny pair in bfloat16."""
    config = config_for(tmp_path_factory.mktemp("bfloat16"), "bfloat16")
    return config, load(config)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[RuntimeConfig, LoadedModel]:
    """The tiny pair in bfloat16, compiled."""
    if (problem := missing_compiler()) is not None:
        pytest.skip(problem)
    config = config_for(tmp_path_factory.mktemp("compiled"), "bfloat16", "on")
    return config, load(config)


@pytest.fixture(scope="module")
def reference(float32: tuple[RuntimeConfig, LoadedModel]) -> PreTrainedModel:
    """The same weights in transformers' own hands."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(float32[0].model.target, dtype=torch.float32)
    return model.eval()


def greedy_requests(model: LoadedModel) -> list[Request]:
    """One request and sixteen others."""
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
    return [
        Request(str(i), prompt, sampling, noise_seed=i, arrival_time=0.0, eos_token_ids=model.eos_token_ids)
        for i, prompt in enumerate(prompts(17))
    ]


@pytest.fixture(scope="module")
def generated(reference: PreTrainedModel) -> dict[str, list[int]]:
    """What `generate()` says to each prompt, alone."""
    texts = {}
    for i, prompt in enumerate(prompts(17)):
        ids = torch.tensor([prompt])
        output = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0
        )
        texts[str(i)] = output[0, len(prompt) :].tolist()
    return texts


@torch.inference_mode()
def top_gap(reference: PreTrainedModel, token_ids: Sequence[int]) -> float:
    """How far the reference's best next token is before its second best."""
    best, second = reference(torch.tensor([token_ids])).logits[0, -1].float().topk(2).values.tolist()
    return float(best - second)


@pytest.mark.parametrize("proposers", PROPOSERS, ids="+".join)
@pytest.mark.parametrize("settings", EVERY_POLICY, ids=name_of)
def test_greedy_text_is_that_of_generate(
    float32: tuple[RuntimeConfig, LoadedModel],
    reference: PreTrainedModel,
    generated: dict[str, list[int]],
    settings: PolicySettings,
    proposers: tuple[Proposer, ...],
) -> None:
    """Batched with sixteen others, with preemption, every request gets the text that transformers gives it alone.

    Where a text parts from the reference, the reference must have been undecided between two tokens.
    """
    requests = greedy_requests(float32[1])
    result = run(float32, requests, settings, proposers)
    assert result.num_preempted > 0
    if settings.policy == "fixed":
        assert result.num_accepted > 0
    for request in requests:
        text, expected = result.texts[request.request_id], generated[request.request_id]
        if text != expected:
            first = next(i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b)
            gap = top_gap(reference, [*request.prompt_token_ids, *expected[:first]])
            print(f"request {request.request_id} parts at token {first}, where the reference's top-2 gap is {gap:.2e}")
            assert gap < MAX_SMALL_GAP


def test_the_reference_can_tell_texts_apart(
    float32: tuple[RuntimeConfig, LoadedModel], reference: PreTrainedModel, generated: dict[str, list[int]]
) -> None:
    """The texts compared are many-sided, and gaps are usually far above what is forgiven: the test above can fail."""
    assert len({tuple(text) for text in generated.values()}) == 17
    assert sum(len(set(text)) for text in generated.values()) / 17 > 5
    gaps = [top_gap(reference, [*prompt, *generated[str(i)][:9]]) for i, prompt in enumerate(prompts(17))]
    assert min(gaps) > MAX_SMALL_GAP


def seeded_requests(model: LoadedModel, which: Sequence[int]) -> list[Request]:
    """Sampled requests that name a seed."""
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.9, top_p=0.95, ignore_eos=True)
    every = prompts(17)
    return [
        Request(
            str(i),
            every[i],
            dataclasses.replace(sampling, seed=100 + i),
            noise_seed=100 + i,
            arrival_time=0.0,
            eos_token_ids=model.eos_token_ids,
            verifier="coupled",
        )
        for i in which
    ]


@pytest.mark.parametrize("served_as", ["float32", "bfloat16", "compiled"])
def test_a_seed_decides_the_text(served_as: str, request: pytest.FixtureRequest) -> None:
    """At temperature 0.9 the same seed gives the same text bit for bit: off, any fixed k, chosen k; alone or not."""
    served: tuple[RuntimeConfig, LoadedModel] = request.getfixturevalue(served_as)
    model = served[1]
    assert model.invariant
    together = run(served, seeded_requests(model, range(17)), OFF)
    assert together.num_preempted > 0
    assert len({tuple(text) for text in together.texts.values()}) == 17
    for settings in EVERY_POLICY[1:]:
        speculated = run(served, seeded_requests(model, range(17)), settings)
        assert speculated.texts == together.texts, name_of(settings)
        assert speculated.num_accepted > 0, name_of(settings)
    for settings in EVERY_POLICY:
        alone = run(served, seeded_requests(model, [5]), settings)
        assert alone.texts["5"] == together.texts["5"], name_of(settings)


def test_verifiers_and_wishes_mix_in_one_batch(float32: tuple[RuntimeConfig, LoadedModel]) -> None:
    """Greedy, coupled and rejection requests share steps; the first two are what they are alone."""
    model = float32[1]
    verifiers: list[Verifier] = ["greedy", "coupled", "rejection"]
    mixed = seeded_requests(model, range(17))
    for i, each in enumerate(mixed):
        each.verifier = verifiers[i % 3]
        if each.verifier == "greedy":
            each.sampling = dataclasses.replace(each.sampling, temperature=0.0)
    texts = run(float32, mixed, PolicySettings(policy="request")).texts
    for i in (0, 1, 3, 4):
        (single,) = seeded_requests(model, [i])
        single.verifier, single.sampling = mixed[i].verifier, mixed[i].sampling
        assert run(float32, [single], OFF).texts[str(i)] == texts[str(i)]
    assert all(len(text) == NUM_TOKENS for text in texts.values())
