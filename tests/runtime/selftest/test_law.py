"""The selftest's own arithmetic: a chi-square that knows a wrong law from a right one."""

import pytest
import torch
from scipy import stats

from smartspec.selftest import law


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    """Logits of a chain over 24 tokens."""
    return torch.randn(law.VOCAB, law.VOCAB, generator=torch.Generator().manual_seed(0)) * 1.5


def draws(table: torch.Tensor, number: int) -> torch.Tensor:
    """Texts of three tokens of the chain, by torch's own sampling."""
    generator = torch.Generator().manual_seed(1)
    probs = table.softmax(1)
    tokens = [torch.zeros(number, dtype=torch.int64)]
    for _ in range(3):
        tokens.append(torch.multinomial(probs[tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens[1:], dim=1)


def p_value(texts: torch.Tensor, table: torch.Tensor, axes: list[int]) -> float:
    """Of some tokens of *texts*."""
    return law._p_value(texts[:, axes], law._marginal(law._law(table, 0), axes))


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 1], [1, 2]], ids=str)
def test_the_right_law_fits_and_a_wrong_one_does_not(table: torch.Tensor, axes: list[int]) -> None:
    """Under a law a tenth warmer the same texts are all but impossible."""
    texts = draws(table, 8000)
    assert p_value(texts, table, axes) > 1e-3
    assert p_value(texts, table / 1.1, axes) < 1e-4


def test_the_p_value_is_that_of_the_textbook(table: torch.Tensor) -> None:
    """Where every cell is expected often enough, nothing is pooled and scipy says the same."""
    flat = table / 4
    texts = draws(flat, 8000)[:, [0]]
    expected = law._marginal(law._law(flat, 0), [0]) * 8000
    assert float(expected.min()) >= law.LEAST_EXPECTED
    counts = torch.bincount(texts[:, 0], minlength=law.VOCAB).numpy()
    assert law._p_value(texts, expected / 8000) == pytest.approx(
        stats.chisquare(counts, expected.numpy()).pvalue, rel=1e-6
    )


def test_a_draft_that_agrees_too_well_is_made_to_differ(table: torch.Tensor) -> None:
    """So that there is something to recover from; one that differs enough stays as it is."""
    probs = table.softmax(1)
    for draft in (table + 0.01 * torch.randn(table.shape, generator=torch.Generator().manual_seed(2)), table.clone()):
        found = law._estranged(draft, table).softmax(1)
        assert float(torch.minimum(found, probs).sum(1).mean()) <= law.AGREED
    stranger = table.roll(1, dims=1)
    assert torch.allclose(law._estranged(stranger, table), stranger, atol=1e-5)


def test_a_chain_that_is_all_but_certain_is_made_warmer(table: torch.Tensor) -> None:
    """Until its most probable token is no surer than half on average."""
    assert law._warmth(table / 10) == 1.0
    assert float((10 * table / law._warmth(10 * table)).softmax(1).amax(1).mean()) <= law.CERTAIN
