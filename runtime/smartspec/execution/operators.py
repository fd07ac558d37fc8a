"""The operators that a compiled forward is made of besides the compiler's own loops: products and attention.

The compiler cannot see into them, it only knows their shapes. Those named native come with `native_operators`, which
know a model by its table; the others find the model that is running, by Python.
"""

from typing import Any

import torch

from smartspec.execution.attention import current
from smartspec.execution.paged_model import PagedModel

_library: Any = torch.library.Library("smartspec", "DEF")  # type: ignore[no-untyped-call]
_library.define("attend(Tensor query, Tensor key, Tensor value, int layer) -> Tensor")
_library.define("linear(Tensor rows, int place, int begin, int end) -> Tensor")
_library.define("native_attend(Tensor query, Tensor key, Tensor value, Tensor table, int layer) -> Tensor")
_library.define("native_linear(Tensor rows, Tensor table, int place, int begin, int end) -> Tensor")
_library.define("native_gated(Tensor rows, Tensor table, int place, int gate, int columns) -> Tensor")

linear = torch.ops.smartspec.linear.default
"""(rows [..., in], place of the product, columns from, to) to [..., columns]."""
native_linear = torch.ops.smartspec.native_linear.default
"""(rows [..., in], table, place of the product, columns from, to) to [..., columns]."""
native_gated = torch.ops.smartspec.native_gated.default
"""(rows [..., in], table, place of a product of two halves, kind of `vector_gate`, columns of a half) to
[..., columns]."""
PRODUCTS = (linear, native_linear, native_gated)
"""What makes of each row, the first argument's, a row, whatever the others are."""


def _running() -> PagedModel:
    model = current()
    assert isinstance(model, PagedModel), "only a paged model runs a compiled forward"
    return model


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int) -> torch.Tensor:
    return _running().attention.attend(layer, query, key, value)


def _linear(rows: torch.Tensor, place: int, begin: int, end: int) -> torch.Tensor:
    product = _running().products[place]
    columns = product.weight.multiply(rows)
    # Contiguous, as the compiler was told.
    return columns if end - begin == product.out_features else columns[..., begin:end].contiguous()


def _attend_shape(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int) -> torch.Tensor:
    return query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))


def _linear_shape(rows: torch.Tensor, place: int, begin: int, end: int) -> torch.Tensor:
    return rows.new_empty((*rows.shape[:-1], end - begin))


def _native_attend_shape(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, layer: int
) -> torch.Tensor:
    return _attend_shape(query, key, value, layer)


def _native_linear_shape(rows: torch.Tensor, table: torch.Tensor, place: int, begin: int, end: int) -> torch.Tensor:
    return _linear_shape(rows, place, begin, end)


def _native_gated_shape(rows: torch.Tensor, table: torch.Tensor, place: int, gate: int, columns: int) -> torch.Tensor:
    return _linear_shape(rows, place, 0, columns)


_library.impl("attend", _attend, "CPU")
_library.impl("linear", _linear, "CPU")
torch.library.register_fake("smartspec::attend", _attend_shape, lib=_library)
torch.library.register_fake("smartspec::linear", _linear_shape, lib=_library)
torch.library.register_fake("smartspec::native_attend", _native_attend_shape, lib=_library)
torch.library.register_fake("smartspec::native_linear", _native_linear_shape, lib=_library)
torch.library.register_fake("smartspec::native_gated", _native_gated_shape, lib=_library)
