"""A found prefix changes no text and costs no acceptance: the real engine, with and without, under preemption."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from smartspec.composition import assemble
from smartspec.config import ModelConfig, RuntimeConfig, SchedulerConfig
from smartspec.execution.loader import LoadedModel, load
from smartspec.execution.recomputed_model import RecomputedModel
from smartspec.policy.settings import PolicySettings
from smartspec.scheduling.request import Request, SamplingParams
from tiny import write_pair

NUM_TOKENS = 32
OFF = PolicySettings(policy="off")
POLICIES = [OFF, PolicySettings(policy="fixed", max_speculative_tokens=4), PolicySettings(policy="request")]

Served = tuple[RuntimeConfig, LoadedModel]


def tiny_pair(directory: Path, dtype: str) -> Served:
    """A tiny pair, over a cache that a dozen requests fill."""
    pair = write_pair(directory, dtype=getattr(torch, dtype))
    config = RuntimeConfig(
        ModelConfig(str(pair.target), str(pair.draft), dtype=dtype, device="cpu", max_model_len=256, compile="off"),
        SchedulerConfig(max_num_seqs=12, max_num_batched_tokens=96, block_size=8, num_blocks=60),
        num_threads=1,
    )
    return config, load(config)


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The pair in float32."""
    return tiny_pair(tmp_path_factory.mktemp("float32"), "float32")


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The pair in bfloat16."""
    return tiny_pair(tmp_path_factory.mktemp("bfloat16"), "bfloat16")


@dataclasses.dataclass
class Run:
    """What came out of an engine, and how."""

    texts: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    num_preempted: int = 0
    num_hits: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted."""
        return self.num_accepted / self.num_drafted


def run(
    served: Served, waves: Sequence[Sequence[Request]], policies: Sequence[PolicySettings], *, prefix_caching: bool
) -> Run:
    """Each of *waves* to its end, under its policy, over one cache; the numbers are those of the last wave.

    Times are made up (a step takes as long as it has had readings of the clock), so that a run can be repeated.
    """
    config, model = served
    config = dataclasses.replace(config, scheduler=dataclasses.replace(config.scheduler, prefix_caching=prefix_caching))
    readings = iter(range(10**9))
    loaded = assemble(
        dataclasses.replace(model, proposers=("draft",)), config, policies[0], lambda: next(readings) / 1000
    )
    scheduler, result = loaded.engine.scheduler, Run()
    for wave, settings in zip(waves, policies, strict=True):
        loaded.policy.apply(settings)
        result = Run(result.texts)
        for request in wave:
            scheduler.add(request)
        while scheduler.has_work:
            output = loaded.engine.step()
            assert output.stats is not None
            result.num_preempted += output.stats.num_preempted
            result.num_hits += output.stats.prefix_hit_tokens
            result.num_drafted += sum(output.stats.drafted_by_proposer.values())
            result.num_accepted += sum(output.stats.accepted_by_proposer.values())
            for new in output.outputs:
                result.texts.setdefault(new.request_id, []).extend(new.new_token_ids)
        scheduler.check_idle()
    return result


def make_wave(name: str, *, temperature: float, count: int = 12) -> list[Request]:
    """Requests that begin alike, part in the midst of a block, and end differently; those of two waves share more."""
    rng = random.Random(5)
    prefix = [rng.randrange(256) for _ in range(45)]
    tails = [[rng.randrange(256) for _ in range(1 + 3 * i)] for i in range(count)]
    return [
        Request(
            f"{name}{i}",
            [*prefix, *tail, *name.encode()],
            SamplingParams(max_tokens=NUM_TOKENS, temperature=temperature, seed=i, ignore_eos=True),
            noise_seed=i,
            arrival_time=0.0,
            verifier="coupled" if temperature else "greedy",
        )
        for i, tail in enumerate(tails)
    ]


def waves(temperature: float) -> list[list[Request]]:
    """Two of them."""
    return [make_wave("a", temperature=temperature), make_wave("b", temperature=temperature)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 0.9], ids=["greedy", "coupled"])
def test_a_hit_changes_no_text(dtype: str, temperature: float, request: pytest.FixtureRequest) -> None:
    """Greedy and seeded texts over found prefixes are, token for token, those over computed ones: within a batch and
    after one, with speculation and without, when requests give way and come back."""
    served: Served = request.getfixturevalue(dtype)
    expected = run(served, waves(temperature), [OFF, OFF], prefix_caching=False)
    assert len({tuple(text) for text in expected.texts.values()}) == 24
    assert (expected.num_hits, served[1].invariant) == (0, True)
    for settings in POLICIES:
        result = run(served, waves(temperature), [settings, settings], prefix_caching=True)
        assert result.texts == expected.texts, settings.policy
        assert result.num_hits >= 12 * 40
        assert result.num_preempted > 0


def test_acceptance_does_not_fall_after_a_hit(float32: Served) -> None:
    """Over a prefix that the draft has not seen, or has seen for others, it guesses as well as over its own."""
    fixed = POLICIES[1]
    rates = {}
    for name, before, prefix_caching in (
        ("computed", OFF, False),
        ("not drafted", OFF, True),
        ("drafted", fixed, True),
    ):
        result = run(float32, waves(0.0), [before, fixed], prefix_caching=prefix_caching)
        assert (result.num_hits > 0) == prefix_caching
        rates[name] = result.acceptance_rate
    assert 0.1 < rates["computed"] < 0.95
    assert rates["not drafted"] == pytest.approx(rates["computed"], abs=0.03)
    assert rates["drafted"] == pytest.approx(rates["computed"], abs=0.03)


def test_models_without_paging_share_prefixes_too(float32: Served) -> None:
    """Where every text is recomputed from its token ids, those are found in shared blocks like keys and values."""
    config, model = float32
    whole = AutoModelForCausalLM.from_pretrained(config.model.target, dtype=torch.float32)
    target = RecomputedModel(whole, num_blocks=model.num_blocks, block_size=model.block_size, batches=False)
    recomputed = config, dataclasses.replace(model, target=target)
    pair = [make_wave(name, temperature=0.0, count=3) for name in "ab"]
    expected = run(recomputed, pair, [OFF, OFF], prefix_caching=False)
    pair = [make_wave(name, temperature=0.0, count=3) for name in "ab"]
    result = run(recomputed, pair, [POLICIES[1], POLICIES[1]], prefix_caching=True)
    assert result.texts == expected.texts
    assert result.num_hits > 100
