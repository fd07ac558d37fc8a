"""Every sampling parameter under speculation: the text of no speculation, and log probabilities of a plain forward.

Seventeen requests at once, each with other parameters and some with none, in memory too small for all of them.
"""

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine_run import Run, config_for, prompts, run
from markov import adjusted
from smartspec.config import RuntimeConfig
from smartspec.execution.loader import LoadedModel, load
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer, Verifier
from smartspec.scheduling.request import Request, SamplingParams, TokenLogprob

NUM_TOKENS = 32
TOLERANCE = 2e-4
OFF = PolicySettings(policy="off")
POLICIES = [*(PolicySettings(policy="fixed", max_speculative_tokens=k) for k in (1, 3, 8)), PolicySettings()]
FIELDS: list[dict[str, Any]] = [
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.9},
    {"frequency_penalty": -0.8},
    {"repetition_penalty": 1.3},
    {"logit_bias": ((65, 4.0), (66, 3.5), (67, -100.0))},
    {"min_tokens": 20, "stop_token_ids": frozenset(range(0, 380, 3))},
    {"stop_token_ids": frozenset(range(0, 380, 9))},
    {"ignore_eos": True, "min_p": 0.05, "top_k": 20},
    {},
    {"allowed_token_ids": tuple(range(3, 380, 7)), "stop_token_ids": frozenset(range(3, 380, 35))},
    {
        "bad_words": ((77,), *((a, b) for a in range(380) for b in range(a % 3, 380, 3))),
        "stop_token_ids": frozenset(range(0, 380, 11)),
    },
    {
        "presence_penalty": -0.5, "frequency_penalty": 0.4, "repetition_penalty": 0.9, "min_tokens": 6,
        "logit_bias": ((10, 2.0),), "stop_token_ids": frozenset(range(1, 380, 5)), "top_p": 0.9,
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[RuntimeConfig, LoadedModel]:
    """The tiny pair in float32."""
    config = config_for(tmp_path_factory.mktemp("rules"), "float32")
    return config, load(config)


@pytest.fixture(scope="module")
def reference(served: tuple[RuntimeConfig, LoadedModel]) -> PreTrainedModel:
    """The same weights in transformers' own hands."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(served[0].model.target, dtype=torch.float32)
    return model.eval()


def requests_for(model: LoadedModel, verifier: Verifier, **fields: Any) -> list[Request]:
    """A request for each prompt, with each of `FIELDS` in turn; *fields* are common to all."""
    temperature = 0.0 if verifier == "greedy" else 0.9
    made = []
    for i, prompt in enumerate(prompts(17)):
        sampling = SamplingParams(
            max_tokens=NUM_TOKENS, temperature=temperature, seed=i, **(FIELDS[i % len(FIELDS)] | fields)
        )
        made.append(Request(str(i), prompt, sampling, i, 0.0, eos_token_ids=model.eos_token_ids, verifier=verifier))
    return made


@torch.inference_mode()
def expected_text(reference: PreTrainedModel, request: Request) -> list[int]:
    """The greedy text of *request*, one plain forward a token."""
    output: list[int] = []
    sampling = request.sampling
    endings = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else request.eos_token_ids)
    sampling = dataclasses.replace(sampling, stop_token_ids=endings)
    while len(output) < NUM_TOKENS:
        row = reference(torch.tensor([[*request.prompt_token_ids, *output]])).logits[0, -1]
        output.append(int(adjusted(row.double().numpy(), sampling, request.prompt_token_ids, output).argmax()))
        if output[-1] in endings:
            break
    return output


def test_greedy_text_is_the_plain_loop_s(served: tuple[RuntimeConfig, LoadedModel], reference: PreTrainedModel) -> None:
    """Token for token the loop that anyone would write over transformers' forward, at every k and with preemption."""
    requests = requests_for(served[1], "greedy")
    expected = {request.request_id: expected_text(reference, request) for request in requests}
    assert len({len(text) for text in expected.values()}) > 4, "some end early"
    assert all(
        text != expected_text(reference, dataclasses.replace(request, sampling=SamplingParams(temperature=0.0)))
        for request, text in zip(requests[:7], list(expected.values())[:7], strict=True)
    ), "a parameter that changes nothing proves nothing"
    for settings in (OFF, *POLICIES):
        result = run(served, requests_for(served[1], "greedy"), settings)
        assert result.num_preempted > 0
        assert result.texts == expected, settings


@pytest.mark.parametrize("proposers", [("draft",), ("lookup",), ("draft", "lookup")], ids="+".join)
def test_a_seed_decides_the_text(served: tuple[RuntimeConfig, LoadedModel], proposers: tuple[Proposer, ...]) -> None:
    """Sampled with every parameter: the same seed gives the same text for any k and proposer, and alone."""
    plain = run(served, requests_for(served[1], "coupled"), OFF)
    for settings in POLICIES:
        result = run(served, requests_for(served[1], "coupled"), settings, proposers)
        assert result.texts == plain.texts, settings
        assert result.num_preempted > 0
        assert result.num_accepted > 0 or proposers == ("lookup",), "sampled text repeats itself too seldom"
    for i in (0, 3, 5, 9, 10, 11):
        alone = run(served, requests_for(served[1], "coupled")[i : i + 1], POLICIES[1], proposers)
        assert alone.texts[str(i)] == plain.texts[str(i)]


def test_drafts_are_as_good_with_rules(served: tuple[RuntimeConfig, LoadedModel]) -> None:
    """The draft follows the rules too: acceptance does not collapse where there are some."""

    def acceptance(fields: dict[str, Any]) -> float:
        plain = [
            dataclasses.replace(r, sampling=SamplingParams(max_tokens=NUM_TOKENS, seed=1, ignore_eos=True, **fields))
            for r in requests_for(served[1], "coupled")
        ]
        result = run(served, plain, PolicySettings(policy="fixed", max_speculative_tokens=3), ("draft",))
        return result.num_accepted / sum(sum(step.drafted_by_proposer.values()) for step in result.steps)

    without = acceptance({})
    for fields in FIELDS[:5]:
        assert acceptance(fields) > 0.8 * without, fields


def scores(result: Run, request_id: str) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
    """Log probabilities of a request's output and of its prompt."""
    own = [output for output in result.outputs if output.request_id == request_id]
    return [one for output in own for one in output.logprobs], [one for output in own for one in output.prompt_logprobs]


@pytest.mark.parametrize("verifier", ["greedy", "coupled", "rejection"])
def test_logprobs_are_a_plain_forward_s(
    served: tuple[RuntimeConfig, LoadedModel], reference: PreTrainedModel, verifier: Verifier
) -> None:
    """Of chosen, most probable and prompt tokens, whatever was speculated, chunked and preempted; once each."""
    wanted = {"logprobs": 3, "prompt_logprobs": 2}
    for settings in (OFF, *POLICIES[1:]):
        requests = requests_for(served[1], verifier, **wanted)
        result = run(served, requests, settings)
        assert result.num_preempted > 0
        for request in requests:
            prompt, text = request.prompt_token_ids, result.texts[request.request_id]
            with torch.inference_mode():
                rows = reference(torch.tensor([[*prompt, *text]])).logits[0].log_softmax(dim=-1)
            output, before = scores(result, request.request_id)
            assert [one.token_id for one in output] == text
            assert [one.token_id for one in before] == prompt[1:]
            for one, row in zip([*before, *output], rows, strict=False):
                assert one.logprob == pytest.approx(float(row[one.token_id]), abs=TOLERANCE)
                assert [value for _, value in one.top] == pytest.approx(
                    row.topk(len(one.top)).values.tolist(), abs=TOLERANCE
                )
                assert abs(one.rank - 1 - int((row > row[one.token_id]).sum())) <= 1
            assert {len(one.top) for one in output} == {3}
            assert {len(one.top) for one in before} == {2}


def test_a_scored_prompt_changes_no_text(served: tuple[RuntimeConfig, LoadedModel]) -> None:
    """And is itself the same bits whatever runs beside it: scored alone, or in chunks among others."""
    together = run(served, requests_for(served[1], "coupled", prompt_logprobs=1, logprobs=0), POLICIES[1])
    assert together.texts == run(served, requests_for(served[1], "coupled"), OFF).texts
    for i in (0, 7, 16):
        alone = run(served, requests_for(served[1], "coupled", prompt_logprobs=1, logprobs=0)[i : i + 1], OFF)
        assert scores(alone, str(i)) == scores(together, str(i))
