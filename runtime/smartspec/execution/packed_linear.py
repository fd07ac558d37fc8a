"""Linear layers whose weights are laid out once, at load, the way the CPU's matrix product reads them.

torch hands a weight to oneDNN as rows, and oneDNN rearranges or strides through it at every call. Laid out in its own
blocks beforehand, a product of few rows reads memory at nearly twice the speed. Layers that read the same tensor (the
query, key and value projections; gate and up) become one product, which saves the starting of threads.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from smartspec.execution.attention import survey

_LAYOUT_ROWS = 16
"""Rows that oneDNN lays a weight out for. Any number can be multiplied with it; steps of some tens are the ones that
serve most tokens."""

LEAST_ROWS = 4
"""Fewer rows take longer than these: measured on Zen 4, 14.8 / 15.6 / 14.6 / 13.4 ms for 1 / 2 / 3 / 4 rows through all
products of a model of 190 M parameters on two cores."""


class Product:
    """One packed weight [in, sum of out] of layers that read the same input."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _LAYOUT_ROWS)
        self.bias = torch.cat(biases) if biases else None
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return output

    def slice(self, rows: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """Columns [begin, end) of the product, which is kept until its last columns were asked for.

        The layers that share a product are called one after the other with the same tensor; another tensor, though
        equal, starts anew.
        """
        if end - begin == self.out_features:
            return self.multiply(rows)
        if self._input is not rows or self._output is None:
            self._input, self._output = rows, self.multiply(rows)
        columns = self._output[..., begin:end]
        if end == self.out_features:
            self._input = self._output = None
        return columns


class PackedLinear(nn.Module):
    """`nn.Linear` on columns [begin, end) of a `Product`, the model's number *place*."""

    def __init__(self, product: Product, place: int, begin: int, end: int) -> None:
        super().__init__()
        self.product, self.place, self.begin, self.end = product, place, begin, end
        self.in_features, self.out_features = product.in_features, end - begin

    @property
    def weight(self) -> torch.Tensor:
        """The weight [out, in] as `nn.Linear` has it, copied at each use: for models that look at it."""
        rows: torch.Tensor = self.product.packed.to_dense()
        return rows[self.begin : self.end]

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias [out], if there is one."""
        return None if self.product.bias is None else self.product.bias[self.begin : self.end]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if torch.compiler.is_compiling():
            columns: torch.Tensor = torch.ops.smartspec.linear(rows, self.place, self.begin, self.end)
            return columns
        return self.product.slice(rows, self.begin, self.end)


def pack_linears(model: PreTrainedModel) -> list[Product]:
    """Pack the bfloat16 linear layers that *model*, on paged attention, calls; [] where oneDNN has no bfloat16.

    float32 stays as it is: its products sum in an order that depends on the number of rows in more ways when packed.
    """
    if model.device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    names = {module: name for name, module in model.named_modules()}
    products: list[Product] = []
    for group in _siblings(_called(model), names):
        product = Product(group)
        begin = 0
        for layer in group:
            parent, _, name = names[layer].rpartition(".")
            end = begin + layer.out_features
            setattr(model.get_submodule(parent), name, PackedLinear(product, len(products), begin, end))
            begin = end
        products.append(product)
    return products


def _called(model: PreTrainedModel) -> list[tuple[nn.Linear, torch.Tensor]]:
    """The layers to pack in the order of their calls, with what each one read."""
    calls: list[tuple[nn.Linear, torch.Tensor]] = []

    def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        calls.append((layer, arguments[0]))

    hooks = [
        module.register_forward_pre_hook(note)
        for module in model.modules()
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16
    ]
    try:
        survey(model)
    finally:
        for hook in hooks:
            hook.remove()
    return list({layer: (layer, read) for layer, read in calls}.values())


def _siblings(
    calls: Sequence[tuple[nn.Linear, torch.Tensor]], names: dict[nn.Module, str]
) -> Iterator[list[nn.Linear]]:
    """Runs of layers in one module that read the same tensor, all with a bias or all without."""
    group: list[nn.Linear] = []
    for (before, read_before), (layer, read) in pairwise([(None, None), *calls]):
        is_sibling = (
            before is not None
            and layer is not None
            and read is read_before
            and names[before].rpartition(".")[0] == names[layer].rpartition(".")[0]
            and (before.bias is None) == (layer.bias is None)
        )
        if group and not is_sibling:
            yield group
            group = []
        assert layer is not None
        group.append(layer)
    if group:
        yield group
