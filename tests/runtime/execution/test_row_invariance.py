"""Which multiple of rows makes matrix products row by row the same."""

import pytest
import torch

from smartspec.execution.row_invariance import row_multiple


class Fussy(torch.nn.Linear):
    """Sums in another order unless the number of rows is a multiple of *unit*."""

    def __init__(self, unit: int) -> None:
        super().__init__(8, 8)
        self.unit = unit

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """As a linear layer would, but for noise."""
        return super().forward(rows) + (1e-3 if rows.shape[-2] % self.unit else 0.0)


@pytest.mark.parametrize(("unit", "expected"), [(4, 4), (8, 8), (16, 16), (7, None)])
def test_the_smallest_sufficient_multiple_is_found(unit: int, expected: int | None) -> None:
    """Or none, where no padding helps."""
    assert row_multiple(torch.nn.Sequential(Fussy(unit))) == expected


class Router(torch.nn.Linear):
    """Inherits from a linear layer, and gives something else than rows."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Which output is the greatest, and by how much: no tensor of rows."""
        return super().forward(rows).max(dim=-1)  # type: ignore[return-value]


def test_what_gives_no_rows_is_passed_over() -> None:
    """Also where it has the shape of a layer that does, and comes before it."""
    assert row_multiple(torch.nn.Sequential(Router(8, 8), Fussy(8))) == 8
    assert row_multiple(torch.nn.Sequential(Router(8, 8))) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_this_machines_products_can_be_made_invariant(dtype: torch.dtype, threads: int) -> None:
    """The shapes of a 384-wide Llama: what the project promises for CPUs holds here."""
    shapes = ((384, 384), (384, 192), (384, 1024), (1024, 384), (384, 2048))
    layers = torch.nn.Sequential(*(torch.nn.Linear(i, o, bias=False, dtype=dtype) for i, o in shapes))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert row_multiple(layers) is not None
    finally:
        torch.set_num_threads(before)
