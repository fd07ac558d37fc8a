"""The choice of rows moves before what goes row by row, and nothing else moves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch._inductor.virtualized import V
from torch.fx.experimental.proxy_tensor import make_fx

from smartspec.execution.kept_rows import choose_early

ROWS, WIDTH = 7, 6
_library: Any = torch.library.Library("smartspec_test", "DEF")  # type: ignore[no-untyped-call]
_library.define("product(Tensor rows, Tensor weight) -> Tensor")
_library.impl("product", torch.matmul, "CPU")
torch.library.register_fake("smartspec_test::product", torch.matmul, lib=_library)
product = torch.ops.smartspec_test.product


def norm(x: torch.Tensor) -> torch.Tensor:
    """As most models have it."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def other_norm(x: torch.Tensor) -> torch.Tensor:
    """As older ones have it: two statistics by one operator."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-6)


def layer(x: torch.Tensor, weight: torch.Tensor, normed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A product, and the same rows passed by it."""
    both = product(normed(x), weight)
    return x + torch.nn.functional.silu(both[..., :WIDTH]) * both[..., WIDTH:]


def split_layer(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same, its product cut in two by one operator."""
    gate, up = product(norm(x), weight).chunk(2, -1)
    return x + torch.nn.functional.silu(gate) * up


def chosen(forward: Callable[..., Any]) -> tuple[list[tuple[int, ...]], Any, Any]:
    """Of *forward* of (rows [1, T, WIDTH], weight, kept rows): the sizes of what the products read after the choice was
    moved, and what it computes before and after."""
    torch.manual_seed(0)
    kept = torch.tensor([5, 1, 6])
    given = (torch.randn(1, ROWS, WIDTH), torch.randn(WIDTH, 2 * WIDTH), kept)
    module = make_fx(forward, tracing_mode="symbolic")(*given)
    expected = module(*given)
    (mode,) = {node.meta["val"].fake_mode for node in module.graph.nodes if hasattr(node.meta.get("val"), "fake_mode")}
    with V.set_fake_mode(mode):
        choose_early(module.graph, [product.default])
    module.recompile()
    sizes: list[tuple[int, ...]] = []

    class Noting(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is product.default:
                sizes.append(tuple(args[0].shape))
            return super().call_function(target, args, kwargs)

    return sizes, expected, Noting(module).run(*given)


@pytest.mark.parametrize("normed", [norm, other_norm])
def test_a_layer_before_the_choice_is_computed_for_chosen_rows_alone(normed: Callable[..., torch.Tensor]) -> None:
    """Two of them, and the norm behind; the values are what they were."""
    sizes, expected, found = chosen(lambda x, w, kept: normed(layer(layer(x, w, normed), w, normed))[:, kept])
    assert sizes == [(1, 3, WIDTH)] * 2
    torch.testing.assert_close(found, expected)


def test_a_product_that_is_cut_goes_by_row_too() -> None:
    """By the channels; values cut otherwise are taken whole."""
    sizes, expected, found = chosen(lambda x, w, kept: split_layer(x, w)[:, kept])
    assert sizes == [(1, 3, WIDTH)]
    torch.testing.assert_close(found, expected)
    sizes, expected, found = chosen(lambda x, w, kept: split_layer(x.topk(WIDTH, dim=-1)[0], w)[:, kept])
    assert sizes == [(1, 3, WIDTH)]
    torch.testing.assert_close(found, expected)


def test_what_mixes_rows_stays_whole() -> None:
    """Attention does, and so here does a sum over the rows before: it needs all of them."""
    sizes, expected, found = chosen(lambda x, w, kept: layer(layer(x, w, norm).cumsum(1), w, norm)[:, kept])
    assert sizes == [(1, ROWS, WIDTH), (1, 3, WIDTH)]
    torch.testing.assert_close(found, expected)


def test_what_is_read_elsewhere_stays_whole() -> None:
    """Nothing is computed twice."""

    def forward(x: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        whole = layer(x, weight, norm)
        return layer(whole, weight, norm)[:, kept], whole

    sizes, expected, found = chosen(forward)
    assert sizes == [(1, ROWS, WIDTH), (1, 3, WIDTH)]
    torch.testing.assert_close(found, expected)


def test_rows_that_meet_other_rows_stay_whole() -> None:
    """A table with a line for each place is not of channels."""
    sizes, expected, found = chosen(lambda x, w, kept: layer(x + x[0].flip(0), w, norm)[:, kept])
    assert sizes == [(1, 3, WIDTH)]
    torch.testing.assert_close(found, expected)
