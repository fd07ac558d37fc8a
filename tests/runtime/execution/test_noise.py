"""The one noise function: stable to the bit, uniform, independent over every argument, and exact when it skips work."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from smartspec.execution import noise
from smartspec.execution.noise import (
    GROUP_TOKENS,
    Purpose,
    exponential,
    gumbel,
    sample,
    seed_tensor,
    stream_keys,
    uniform,
)

MASK = (1 << 64) - 1
INCREMENT = 0x9E3779B97F4A7C15
COUNT = 40_000


def mix(z: int) -> int:
    """SplitMix64's finaliser on Python's unbounded integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def exponential_by_hand(seed: int, position: int, purpose: int, token: int) -> float:
    """The definition, one number at a time."""
    key = mix(mix(seed + INCREMENT & MASK) + (position * len(Purpose) + purpose) * INCREMENT & MASK)
    head = mix(key - (token // GROUP_TOKENS + 1) * INCREMENT & MASK)
    least = -math.log(((head >> 12) + 0.5) / 2**52) / GROUP_TOKENS
    if token % GROUP_TOKENS == head % GROUP_TOKENS:
        return least
    return least - math.log(((mix(key + (token + 1) * INCREMENT & MASK) >> 12) + 0.5) / 2**52)


def one_key(seed: int = 7, position: int = 11, purpose: Purpose = Purpose.TOKEN) -> Tensor:
    """A single key, [1]."""
    return stream_keys(seed_tensor([seed]), torch.tensor([position]), purpose)


@given(
    seed=st.integers(0, MASK),
    position=st.integers(0, 1 << 40),
    purpose=st.sampled_from(Purpose),
    token=st.integers(0, 300_000),
)
def test_noise_is_the_documented_function(seed: int, position: int, purpose: Purpose, token: int) -> None:
    """64-bit wrap-around in tensors gives what unbounded integers reduced modulo 2^64 give."""
    value = exponential(one_key(seed, position, purpose), torch.tensor([token])).item()
    assert value == pytest.approx(exponential_by_hand(seed, position, purpose, token), rel=1e-12)


def test_noise_never_changes() -> None:
    """Seeded texts outlive releases: these numbers may not change."""
    assert one_key(0, 0).item() == 5197578548964807871
    assert uniform(one_key(1, 2, Purpose.ACCEPT)).item() == 0.25257698838954623
    values = exponential(one_key(1, 2), torch.tensor([0, 1, 151_000])).tolist()
    assert values == pytest.approx([0.8670867391469843, 1.075053975852595, 0.040683564404357005], rel=1e-12)


@pytest.mark.parametrize("seed", [-1, 1 << 63, MASK, (1 << 64) + 5])
def test_any_integer_is_a_seed(seed: int) -> None:
    """Seeds outside int64 are taken modulo 2^64, not refused."""
    assert seed_tensor([seed]).item() & MASK == seed & MASK


def test_the_ends_of_the_unit_interval_are_excluded() -> None:
    """All-ones bits give less than 1 and all-zeros bits more than 0, so no noise is infinite and no mask turns NaN."""
    ends = noise._open_unit(torch.tensor([-1, 0]))
    assert ends[0] < 1.0
    assert ends[1] > 0.0
    assert (-ends.log() > 0).all()
    assert (-(-ends.log()).log()).isfinite().all()


def along(argument: str) -> Tensor:
    """Uniform noise of `COUNT` consecutive values of one argument, the others fixed."""
    run = torch.arange(COUNT)
    fixed = torch.tensor(3)
    if argument == "seed":
        return uniform(stream_keys(run, fixed, Purpose.ACCEPT))
    if argument == "position":
        return uniform(stream_keys(fixed, run, Purpose.ACCEPT))
    if argument == "purpose":
        return uniform(stream_keys(run // len(Purpose), fixed, run % len(Purpose)))
    return torch.exp(-exponential(one_key(), run))


@pytest.mark.parametrize("argument", ["seed", "position", "purpose", "token"])
def test_noise_is_uniform_along_each_argument(argument: str) -> None:
    """A Kolmogorov-Smirnov test finds nothing wrong with consecutive values."""
    assert stats.kstest(along(argument).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("lag", [1, 2, GROUP_TOKENS - 1, GROUP_TOKENS])
@pytest.mark.parametrize("argument", ["seed", "position", "purpose", "token"])
def test_neighbours_are_independent(argument: str, lag: int) -> None:
    """Pairs of values a few steps apart fill the unit square evenly."""
    values = along(argument).numpy()
    counts = np.histogram2d(values[:-lag], values[lag:], bins=10, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_tokens_of_one_group_are_independent_exponentials() -> None:
    """Drawing the least first does not show, neither in the law of two members nor in whose the least one is."""
    keys = stream_keys(torch.arange(COUNT), torch.tensor(1), Purpose.DRAFT)
    values = exponential(keys[:, None], torch.arange(GROUP_TOKENS)).numpy()
    assert stats.kstest(values[:, 5], "expon").pvalue > 1e-3
    assert stats.kstest(values.min(axis=1) * GROUP_TOKENS, "expon").pvalue > 1e-3
    assert stats.chisquare(np.bincount(values.argmin(axis=1), minlength=GROUP_TOKENS)).pvalue > 1e-3
    pairs = np.histogram2d(np.exp(-values[:, 0]), np.exp(-values[:, 9]), bins=12, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3
    # The exponential race between any two is fair, and its winning time says nothing about the winner.
    race = np.minimum(values[:, 3], values[:, 4])
    early = race < np.median(race)
    wins = np.array([[(values[:, 3] < values[:, 4])[early == e].sum() for e in (False, True)]])
    assert stats.chisquare(np.concatenate([wins, COUNT // 2 - wins]).ravel()).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.sampled_from([1, 2, 31, 32, 33, 200, 4099]),
    scale=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    masked=st.sampled_from([0.0, 0.5, 0.99]),
    seed=st.integers(0, 1 << 30),
)
def test_skipping_tokens_that_cannot_win_changes_nothing(vocab: int, scale: float, masked: float, seed: int) -> None:
    """`sample` equals hashing the whole vocabulary and taking the best, for flat, peaked and masked rows."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, vocab, generator=generator) * scale
    mask = torch.rand(9, vocab, generator=generator) < masked
    mask[:, seed % vocab] = False
    log_probs = logits.masked_fill(mask, -torch.inf).log_softmax(dim=1)
    keys = stream_keys(torch.full((9,), seed), torch.arange(9), Purpose.TOKEN)
    whole = (log_probs.double() + gumbel(keys[:, None], torch.arange(vocab))).argmax(dim=1)
    assert torch.equal(sample(log_probs, keys), whole)


def test_few_tokens_of_a_large_vocabulary_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row as peaked as a language model's needs under a tenth of its tokens looked into."""
    looked = 0
    members = noise._group_members

    def counting(keys: Tensor, tokens: Tensor, heads: Tensor, least: Tensor) -> Tensor:
        nonlocal looked
        looked += tokens.numel()
        return members(keys, tokens, heads, least)

    monkeypatch.setattr(noise, "_group_members", counting)
    log_probs = (torch.randn(4, 100_000, generator=torch.Generator().manual_seed(0)) * 3).log_softmax(dim=1)
    sample(log_probs, stream_keys(torch.arange(4), torch.tensor(0), Purpose.TOKEN))
    assert 0 < looked < 0.1 * log_probs.numel()


def test_a_masked_token_never_wins() -> None:
    """With all but one token ruled out, that one is drawn under every key."""
    log_probs = torch.full((5000, 40), -torch.inf)
    log_probs[:, 37] = 0.0
    assert (sample(log_probs, stream_keys(torch.arange(5000), torch.tensor(0), Purpose.RECOVER)) == 37).all()


def test_samples_follow_the_distribution() -> None:
    """Tokens drawn under consecutive seeds have the row's own law."""
    log_probs = (torch.randn(1, 70, generator=torch.Generator().manual_seed(1)) * 1.5).log_softmax(dim=1)
    keys = stream_keys(torch.arange(COUNT), torch.tensor(0), Purpose.TOKEN)
    counts = np.bincount(sample(log_probs.expand(COUNT, -1), keys).numpy(), minlength=70)
    expected = log_probs.double().exp()[0].numpy()
    assert stats.chisquare(counts, expected / expected.sum() * COUNT).pvalue > 1e-3


def test_a_rows_sample_does_not_depend_on_its_batch() -> None:
    """Alone or among 17, a row and its key give the same token."""
    log_probs = torch.randn(17, 1000, generator=torch.Generator().manual_seed(2)).log_softmax(dim=1)
    keys = stream_keys(torch.arange(17), torch.tensor(4), Purpose.TOKEN)
    alone = torch.cat([sample(log_probs[i : i + 1], keys[i : i + 1]) for i in range(17)])
    assert torch.equal(sample(log_probs, keys), alone)
