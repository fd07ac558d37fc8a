"""The compiled forward's matrix products and attention as operators without Python in them.

Between any two operators of a step the caches were filled with weights, and the interpreter's own code and data thrown
out: Python takes several times as long as it would alone, eighty times a step. These operators are compiled functions
that torch's dispatcher calls by its stable C interface (torch/csrc/inductor/aoti_torch/c/shim.h), and that run the same
kernels as `PaneledWeight.multiply` and `CompiledAttention.attend`, with the same results.

What a step needs beside tensors lies in a `Table`, which the graph hands through as one more tensor: addresses of
kernels and of their parameter blocks, and how many threads to run them on.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import torch

from smartspec.execution import openmp, product_kernel
from smartspec.execution.attention_kernel import FIELDS
from smartspec.execution.compiled_attention import CompiledAttention
from smartspec.execution.packed_linear import PaneledWeight, Product
from smartspec.native import address_of_operator, carray, external, njit, pointer, sources_of, types

_SHIM = (
    "aoti_torch_get_data_ptr", "aoti_torch_get_dim", "aoti_torch_get_size", "aoti_torch_get_stride",
    "aoti_torch_get_dtype", "aoti_torch_empty_strided", "aoti_torch_delete_tensor_object",
)  # fmt: skip
"""What the operators call, all `int32 f(handle, ...)`, the last argument a place for the answer."""
_PARALLEL = "smartspec_parallel"

MULTIPLY, WRITE, ATTEND, ELEMENT_BITS, LAYERS, THREADS, ATTENTION_THREADS, MISUSED, PRODUCTS = range(9)
"""Fields of a table. At `PRODUCTS` the addresses of the products' parameter blocks begin, where `LAYERS` says those of
attention's; `MISUSED` is set by an operator that was handed what it cannot read: another type than it is for, or rows
that do not lie in one piece."""
_HUGE = 1 << 40
_MOST_DIMENSIONS = 8
_I = {name: i for i, name in enumerate(FIELDS)}
_NEXT, _QUERY, _QUERY_ROW = _I["next_item"], _I["query"], _I["query_row"]
_CPU, _BFLOAT16 = 0, 15
"""Numbers of c10::DeviceType and c10::ScalarType."""

_i32, _i64 = types.int32, types.int64
_get_data = external("aoti_torch_get_data_ptr", _i32(_i64, _i64))
_get_dimensions = external("aoti_torch_get_dim", _i32(_i64, _i64))
_get_size = external("aoti_torch_get_size", _i32(_i64, _i64, _i64))
_get_stride = external("aoti_torch_get_stride", _i32(_i64, _i64, _i64))
_get_dtype = external("aoti_torch_get_dtype", _i32(_i64, _i64))
_empty = external("aoti_torch_empty_strided", _i32(_i64, _i64, _i64, _i32, _i32, _i32, _i64))
_delete = external("aoti_torch_delete_tensor_object", _i32(_i64))
_parallel = external(_PARALLEL, types.void(_i64, _i64, types.uint32, types.uint32))


@njit()
def _new(dtype: int, sizes: Any, dimensions: int, found: Any) -> int:
    """The handle of a new contiguous tensor of *sizes* [dimensions]."""
    strides = np.empty(_MOST_DIMENSIONS, np.int64)
    along = 1
    for i in range(dimensions - 1, -1, -1):
        strides[i] = along
        along *= sizes[i]
    _empty(
        dimensions, sizes.ctypes.data, strides.ctypes.data, np.int32(dtype), np.int32(_CPU), np.int32(0),
        found.ctypes.data,
    )  # fmt: skip
    return int(found[0])


@njit()
def _data(handle: int, found: Any) -> int:
    """The address of a tensor's first element."""
    _get_data(handle, found.ctypes.data)
    return int(found[0])


@njit()
def _shape(handle: int, sizes: Any, strides: Any, found: Any) -> int:
    """Put a tensor's sizes and strides in place; returns how many dimensions it has."""
    _get_dimensions(handle, found.ctypes.data)
    dimensions = int(found[0])
    for i in range(dimensions):
        _get_size(handle, i, found.ctypes.data)
        sizes[i] = found[0]
        _get_stride(handle, i, found.ctypes.data)
        strides[i] = found[0]
    return dimensions


@njit()
def _dtype(handle: int, found: Any) -> int:
    """The number of a tensor's type."""
    found[0] = 0
    _get_dtype(handle, found.ctypes.data)
    return int(found[0])


@njit()
def _product(rows: int, table: Any, place: int, gate: int, sizes: Any, found: Any) -> int:
    """The handle of the product *place* of *rows*, gated where there is a kind of *gate*; puts its sizes in place."""
    strides = np.empty(_MOST_DIMENSIONS, np.int64)
    p = carray(pointer(table[PRODUCTS + place]), product_kernel.NUM_FIELDS, np.int64)
    dimensions, dtype = _shape(rows, sizes, strides, found), _dtype(rows, found)
    width = 2 * p[product_kernel.PAIRS]
    is_read = dtype == _BFLOAT16 and sizes[dimensions - 1] == width and (gate == 0 or p[product_kernel.HALF] > 0)
    along = 1
    for i in range(dimensions - 1, -1, -1):
        is_read &= sizes[i] < 2 or strides[i] == along
        along *= sizes[i]
    sizes[dimensions - 1] = p[product_kernel.HALF] if gate else p[product_kernel.COLUMNS_OF_W]
    out = _new(dtype, sizes, dimensions, found)
    p[product_kernel.NEXT_ITEM], p[product_kernel.GATE] = 0, gate
    p[product_kernel.ROWS] = along // width
    p[product_kernel.X] = _data(rows, found)
    p[product_kernel.OUT] = _data(out, found)
    if is_read:
        _parallel(table[MULTIPLY], table[PRODUCTS + place], np.uint32(table[THREADS]), np.uint32(0))
    else:
        table[MISUSED] = 1
    return int(out)


@njit()
def _columns(handle: int, begin: int, end: int, sizes: Any, found: Any) -> int:
    """The handle of columns [begin, end) of the bfloat16 tensor *handle* of *sizes*, which is given back."""
    dimensions = _shape(handle, sizes, np.empty(_MOST_DIMENSIONS, np.int64), found)
    columns, count = sizes[dimensions - 1], 1
    for i in range(dimensions - 1):
        count *= sizes[i]
    sizes[dimensions - 1] = end - begin
    part = _new(_BFLOAT16, sizes, dimensions, found)
    source = carray(pointer(_data(handle, found)), _HUGE, np.uint16)
    target = carray(pointer(_data(part, found)), _HUGE, np.uint16)
    for row in range(count):
        for column in range(end - begin):
            target[row * (end - begin) + column] = source[row * columns + begin + column]
    _delete(handle)
    return int(part)


def _linear_entry(version: str) -> Any:
    """`native_linear(Tensor rows, Tensor table, int place, int begin, int end)`: arguments come on the stack, with the
    ownership of tensors' handles, and the result is left there."""

    def linear(stack: Any, num_arguments: Any, num_outputs: Any) -> None:
        _ = version  # what a closure holds is part of numba's cache key, what it calls is not
        given = carray(stack, 5, np.int64)
        rows, table_handle, place, begin, end = given[0], given[1], given[2], given[3], given[4]
        found, sizes = np.zeros(1, np.int64), np.empty(_MOST_DIMENSIONS, np.int64)
        table = carray(pointer(_data(table_handle, found)), _HUGE, np.int64)
        p = carray(pointer(table[PRODUCTS + place]), product_kernel.NUM_FIELDS, np.int64)
        out = _product(rows, table, place, 0, sizes, found)
        if end - begin != p[product_kernel.COLUMNS_OF_W]:
            out = _columns(out, begin, end, sizes, found)
        _delete(rows)
        _delete(table_handle)
        given[0] = out

    return linear


def _gated_entry(version: str) -> Any:
    """`native_gated(Tensor rows, Tensor table, int place, int gate, int columns)`, as above: a product of two halves of
    so many columns, the first of which gates the second."""

    def gated(stack: Any, num_arguments: Any, num_outputs: Any) -> None:
        _ = version
        given = carray(stack, 5, np.int64)
        rows, table_handle = given[0], given[1]
        found, sizes = np.zeros(1, np.int64), np.empty(_MOST_DIMENSIONS, np.int64)
        table = carray(pointer(_data(table_handle, found)), _HUGE, np.int64)
        out = _product(rows, table, given[2], given[3], sizes, found)
        _delete(rows)
        _delete(table_handle)
        given[0] = out

    return gated


def _attend_entry(version: str) -> Any:
    """`native_attend(Tensor query, Tensor key, Tensor value, Tensor table, int layer)`, as above."""

    def attend(stack: Any, num_arguments: Any, num_outputs: Any) -> None:
        _ = version
        given = carray(stack, 5, np.int64)
        table_handle, layer = given[3], given[4]
        found, sizes, strides = (
            np.zeros(1, np.int64),
            np.empty(_MOST_DIMENSIONS, np.int64),
            np.empty(_MOST_DIMENSIONS, np.int64),
        )
        table = carray(pointer(_data(table_handle, found)), _HUGE, np.int64)
        block = table[table[LAYERS] + layer]
        p = carray(pointer(block), len(FIELDS), np.int64)
        shape = np.empty(4, np.int64)
        shape[0], is_read = 1, True
        for i in range(3):
            _shape(given[i], sizes, strides, found)
            p[_QUERY + i] = _data(given[i], found)
            p[_QUERY_ROW + 2 * i] = strides[2]
            p[_QUERY_ROW + 2 * i + 1] = strides[1]
            is_read &= strides[3] == 1 or sizes[3] < 2
            if i == 0:
                shape[1], shape[2] = sizes[2], sizes[1]
            shape[3] = sizes[3]
        out = _new(_dtype(given[0], found), shape, 4, found)
        p[_QUERY + 3] = _data(out, found)
        bits = carray(pointer(p[_QUERY + 3]), _HUGE, np.uint16)
        for i in range(shape[1] * shape[2] * shape[3] * table[ELEMENT_BITS] // 16):  # rows without a tile are zero
            bits[i] = 0
        if is_read:
            p[_NEXT] = 0
            _parallel(table[WRITE], block, np.uint32(table[ATTENTION_THREADS]), np.uint32(0))
            p[_NEXT] = 0
            _parallel(table[ATTEND], block, np.uint32(table[ATTENTION_THREADS]), np.uint32(0))
        else:
            table[MISUSED] = 1
        for i in range(4):
            _delete(given[i])
        given[0] = out

    return attend


class Table:
    """What the operators need of one model: its products, and its attention over its caches."""

    def __init__(self, weights: Sequence[PaneledWeight], attention: CompiledAttention) -> None:
        blocks = attention.parameter_blocks
        self.halved = frozenset(place for place, weight in enumerate(weights) if weight.halves)
        """Places of products whose first half can gate the second."""
        self.tensor = torch.zeros(PRODUCTS + len(weights) + len(blocks), dtype=torch.int64)
        self._fields = self.tensor.numpy()
        self._fields[MULTIPLY] = weights[0].kernel if weights else 0
        self._fields[WRITE], self._fields[ATTEND] = attention.kernels.write, attention.kernels.attend
        self._fields[ELEMENT_BITS] = attention.element_bits
        self._fields[LAYERS] = PRODUCTS + len(weights)
        self._fields[PRODUCTS:] = [*(weight.address for weight in weights), *(block.ctypes.data for block in blocks)]
        self._attention = attention

    def begin(self) -> None:
        """Note how many threads the coming step runs on; after `CompiledAttention.begin`."""
        self._fields[THREADS], self._fields[ATTENTION_THREADS] = torch.get_num_threads(), self._attention.num_threads

    @property
    def is_misused(self) -> bool:
        """Whether an operator was ever handed what it cannot read, and left it alone."""
        return bool(self._fields[MISUSED])


def table_of(products: Sequence[Product], attention: CompiledAttention) -> Table | None:
    """The table of a model with these, whose operators are then known to torch; None where there are none for it."""
    weights = [product.weight for product in products if isinstance(product.weight, PaneledWeight)]
    return Table(weights, attention) if len(weights) == len(products) and register() else None


@cache
def register() -> bool:
    """Make the operators known to torch's dispatcher; False where there is no OpenMP or no such interface."""
    parallel = openmp.address()
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        for name in _SHIM:
            llvmlite.binding.add_symbol(name, _address(getattr(library, name)))
        register, implement = library.aoti_torch_library_init_impl, library.aoti_torch_library_impl
    except (OSError, AttributeError):
        return False
    if parallel is None:
        return False
    llvmlite.binding.add_symbol(_PARALLEL, parallel)
    handle = ctypes.c_void_p()
    problem = register(b"smartspec", b"CPU", __file__.encode(), 0, ctypes.byref(handle))
    for name, operator in operators().items():
        problem = problem or implement(handle, name.encode(), ctypes.c_void_p(operator))
    return not problem


def operators() -> dict[str, int]:
    """Addresses of the operators by name: C functions `void f(uint64_t *stack, uint64_t, uint64_t)`."""
    version = sources_of(__file__, "machine", "product_kernel", "attention_kernel")  # theirs are the fields
    return {
        "native_linear": address_of_operator(_linear_entry(version)),
        "native_gated": address_of_operator(_gated_entry(version)),
        "native_attend": address_of_operator(_attend_entry(version)),
    }


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
