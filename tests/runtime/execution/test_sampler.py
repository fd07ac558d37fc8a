"""From logits to distributions: the filters' exact meaning, and each row for itself alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from smartspec.execution import sampler
from smartspec.execution.sampler import SamplingTensors, process_logits
from smartspec.scheduling.request import SamplingParams


def random_logits(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Normal logits."""
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def transformers_log_probs(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """What transformers samples from under the same parameters."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0.0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(None, logits.double()).log_softmax(dim=-1)


@settings(max_examples=80, deadline=None)
@given(
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 63, 64, 65, 1500, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.001, 0.1, 1.0]),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    seed=st.integers(0, 1000),
)
def test_filters_mean_what_they_mean_in_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, scale: float, seed: int
) -> None:
    """Temperature, top-k, top-p and min-p, alone and together, keep the same tokens with the same probabilities."""
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = random_logits(2, 1500, seed, scale)
    ours = process_logits(logits, SamplingTensors.of([sampling] * 2)).double().exp()
    theirs = transformers_log_probs(logits, sampling).exp()
    # One token on the very edge of top-p or min-p may fall to either side by rounding.
    differing = (ours > 0) != (theirs > 0)
    assert differing.sum(dim=1).max() <= 1
    assert (ours - theirs).abs().max() < (5e-3 if differing.any() else 3e-5)
    assert ours.sum(dim=1) == pytest.approx([1.0, 1.0], abs=1e-5)


MIXED = [
    SamplingParams(),
    SamplingParams(temperature=0.6, top_p=0.9),
    SamplingParams(top_k=3),
    SamplingParams(temperature=3.0, top_p=0.999),
    SamplingParams(min_p=0.05),
    SamplingParams(temperature=0.9, top_k=200, top_p=0.8, min_p=0.01),
    SamplingParams(temperature=0.0),
]


@pytest.mark.parametrize("vocab", [7, 64, 1023, 5000])
def test_a_rows_distribution_is_bit_equal_alone_and_in_a_batch(vocab: int) -> None:
    """What else is in the batch, and which filters it asks for, changes no bit of a row."""
    params = [MIXED[i % len(MIXED)] for i in range(17)]
    logits = random_logits(17, vocab)
    together = process_logits(logits, SamplingTensors.of(params))
    for i, sampling in enumerate(params):
        alone = process_logits(logits[i : i + 1].clone(), SamplingTensors.of([sampling]))
        assert torch.equal(together[i], alone[0]), sampling


def test_no_filter_means_no_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature and min-p alone never rank the vocabulary."""

    def refuse(*_: object) -> Tensor:
        raise AssertionError("ranked without need")

    monkeypatch.setattr(sampler, "_rank_thresholds", refuse)
    process_logits(
        random_logits(2, 50), SamplingTensors.of([SamplingParams(temperature=0.5), SamplingParams(min_p=0.1)])
    )


def test_equally_probable_tokens_stand_or_fall_together() -> None:
    """Where the last place is shared, all who share it are kept: no sort's order decides."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    kept = process_logits(logits, SamplingTensors.of([SamplingParams(top_k=2)])).isfinite()
    assert kept.tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_a_tiny_temperature_is_as_good_as_greedy(temperature: float) -> None:
    """No overflow, no NaN: all the mass is on the most probable token."""
    logits = random_logits(3, 20) * 1000
    probs = process_logits(logits, SamplingTensors.of([SamplingParams(temperature=temperature)] * 3)).exp()
    assert probs.max(dim=1).values.tolist() == [1.0] * 3
    assert torch.equal(probs.argmax(dim=1), logits.argmax(dim=1))
