"""Linear layers whose weights are laid out once, at load, the way the CPU's matrix product reads them.

torch hands a weight to oneDNN as rows, and oneDNN rearranges or strides through it at every call. Laid out beforehand,
a product of few rows reads memory at twice the speed. Layers that read the same tensor (the query, key and value
projections; gate and up) become one product, which saves the starting of threads.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from smartspec.execution import openmp, product_kernel
from smartspec.execution.attention import survey
from smartspec.native import BFLOAT16, chosen, machine_features


class Weight(Protocol):
    """A weight [out, in] laid out, with its bias."""

    least_rows: int
    """Fewer rows take longer than these."""

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""

    def dense(self) -> torch.Tensor:
        """The weight as `nn.Linear` has it, a copy."""


def has_own_kernel() -> bool:
    """Whether products of bfloat16 are our own kernel's on this machine: where there are AMX's, oneDNN has them."""
    return chosen() is BFLOAT16 and "amx_bf16" not in machine_features()


class PaneledWeight:
    """Multiplied by our own kernel: for any number of rows ahead of oneDNN on the processors that it `suits`, most of
    all for few."""

    least_rows = 1

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, halves: bool = False) -> None:
        self.halves = halves and len(weight) % (2 * product_kernel.COLUMNS) == 0
        """Whether the first half of the columns can gate the second."""
        self._panels = product_kernel.paneled(weight, halves=self.halves)
        self._bias = torch.zeros(len(weight)) if bias is None else bias.float()
        if self.halves:
            self._bias = product_kernel.in_turns(self._bias)
        self.parameters = np.zeros(product_kernel.NUM_FIELDS, np.int64)
        """The kernel's parameter block, as its last product left it."""
        self.parameters[product_kernel.PAIRS] = weight.shape[1] // 2
        self.parameters[product_kernel.COLUMNS_OF_W] = len(weight)
        self.parameters[product_kernel.HALF] = len(weight) // 2 if self.halves else 0
        self.parameters[product_kernel.W] = self._panels.data_ptr()
        self.parameters[product_kernel.BIAS] = self._bias.data_ptr()
        self.address = self.parameters.ctypes.data  # asked for once, not at every step
        self.kernel = product_kernel.kernel()

    @staticmethod
    def suits(weight: torch.Tensor) -> bool:
        """Whether the kernel can, and should."""
        return has_own_kernel() and len(weight) % product_kernel.COLUMNS == 0 and weight.shape[1] % 2 == 0

    def multiply(self, rows: torch.Tensor, gate: int = 0) -> torch.Tensor:
        """[..., in] to [..., out]; with a kind of *gate*, of halves, to [..., out / 2]."""
        rows = rows.contiguous()
        out = rows.new_empty((*rows.shape[:-1], len(self._bias) // (2 if gate else 1)))
        parameters = self.parameters
        parameters[product_kernel.NEXT_ITEM], parameters[product_kernel.GATE] = 0, gate
        parameters[product_kernel.ROWS] = rows.numel() // rows.shape[-1]
        parameters[product_kernel.X], parameters[product_kernel.OUT] = rows.data_ptr(), out.data_ptr()
        openmp.run(self.kernel, self.address, torch.get_num_threads())
        return out

    def dense(self) -> torch.Tensor:
        """The weight as `nn.Linear` has it, a copy."""
        return product_kernel.flat(self._panels, halves=self.halves)


class BlockedWeight:
    """In oneDNN's own blocks, multiplied by oneDNN."""

    least_rows = 4
    """Measured on Zen 4: 14.8 / 15.6 / 14.6 / 13.4 ms for 1 / 2 / 3 / 4 rows through all products of a model of 190 M
    parameters on two cores."""

    _LAYOUT_ROWS = 16
    """Rows that oneDNN lays a weight out for. Any number can be multiplied with it; steps of some tens are the ones
    that serve most tokens."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._blocks = torch.ops.mkldnn._reorder_linear_weight(weight, self._LAYOUT_ROWS)
        self._bias = bias

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._blocks, self._bias, "none", [], "")
        return output

    def dense(self) -> torch.Tensor:
        """The weight as `nn.Linear` has it, a copy."""
        weight: torch.Tensor = self._blocks.to_dense()
        return weight


class Product:
    """One packed weight [sum of out, in] of layers that read the same input."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        self.bias = torch.cat(biases) if biases else None
        halves = len(layers) == 2 and layers[0].out_features == layers[1].out_features
        self.weight: Weight = (
            PaneledWeight(weight, self.bias, halves=halves)
            if PaneledWeight.suits(weight)
            else BlockedWeight(weight, self.bias)
        )
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None

    def slice(self, rows: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """Columns [begin, end) of the product, which is kept until its last columns were asked for.

        The layers that share a product are called one after the other with the same tensor; another tensor, though
        equal, starts anew.
        """
        if end - begin == self.out_features:
            return self.weight.multiply(rows)
        if self._input is not rows or self._output is None:
            self._input, self._output = rows, self.weight.multiply(rows)
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
        self.smartspec_table: torch.Tensor | None = None
        """Of `native_operators`, where the compiled forward has those."""

    @property
    def weight(self) -> torch.Tensor:
        """The weight [out, in] as `nn.Linear` has it, copied at each use: for models that look at it."""
        return self.product.weight.dense()[self.begin : self.end]

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias [out], if there is one."""
        return None if self.product.bias is None else self.product.bias[self.begin : self.end]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if torch.compiler.is_compiling():
            # The compiler sees an operator: see `compiled_forward`.
            columns: torch.Tensor = (
                torch.ops.smartspec.linear(rows, self.place, self.begin, self.end)
                if self.smartspec_table is None
                else torch.ops.smartspec.native_linear(rows, self.smartspec_table, self.place, self.begin, self.end)
            )
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
