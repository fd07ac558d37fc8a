"""How many rows a matrix product must be padded to, so that a row's bits do not depend on the others.

A maths library picks its algorithm by the shape: in float32 products of 1 to 3 rows commonly sum in another order than
larger ones, and threads may get remainders of that size. Which multiple of rows cures it depends on the library, the
processor and the number of threads, so it is measured on the model's own layers, here, at load.
"""

import torch

from smartspec.execution.packed_linear import PackedLinear

CANDIDATES = (1, 4, 8, 16)
_MOST_ROWS = 160
_ROW_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 20, 24, 28, 31, 32, 40, 48, 63, 64, 80, 96, 112, 128, 144)


def row_multiple(model: torch.nn.Module) -> int | None:
    """The smallest multiple of rows that makes each linear layer of *model* invariant, or None if none does."""
    layers = _distinct(model)
    if not layers:
        return 1
    return next((n for n in CANDIDATES if all(_is_invariant(layer, n) for layer in layers)), None)


def _distinct(model: torch.nn.Module) -> list[torch.nn.Module]:
    """One layer of each shape: anything with a matrix that takes rows of features."""
    seen: dict[tuple[object, ...], torch.nn.Module] = {}
    for module in model.modules():
        if isinstance(module, PackedLinear):
            product = module.product
            seen.setdefault((product.in_features, product.out_features, product.bias is None), module)
        elif (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D") and _gives_rows(module):
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            seen.setdefault((*weight.shape, weight.dtype, getattr(module, "bias", None) is None), module)
    return list(seen.values())


@torch.inference_mode()
def _gives_rows(layer: torch.nn.Module) -> bool:
    """Whether *layer* makes a row of each row. Routers and grouped products inherit from `Linear` too, and make
    something else; what they do to invariance is seen when the whole model is tried."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    try:
        out = layer(weight.new_zeros((1, 2, _width(layer, weight))))
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return isinstance(out, torch.Tensor) and out.shape[:2] == (1, 2)


def _width(layer: torch.nn.Module, weight: torch.Tensor) -> int:
    return weight.shape[1] if isinstance(layer, (PackedLinear, torch.nn.Linear)) else weight.shape[0]


@torch.inference_mode()
def _is_invariant(layer: torch.nn.Module, multiple: int) -> bool:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    least = layer.product.weight.least_rows if isinstance(layer, PackedLinear) else 1
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((1, _MOST_ROWS, _width(layer, weight)), generator=generator).to(weight)
    whole = layer(rows)
    counts = sorted({-(-max(count, least) // multiple) * multiple for count in _ROW_COUNTS})
    return all(torch.equal(layer(rows[:, :count]), whole[:, :count]) for count in counts)
