"""out = x @ w + bias of bfloat16 rows, in AVX-512's own bfloat16 instruction: few rows at nearly the speed of memory,
many at nearly that of the multipliers.

A step of some rows is spent in reading weights. They lie in the order in which they are read: panels of 32 columns, in
a panel the pairs of inputs one after the other, of a pair its 32 columns (`paneled`). At most eight rows, a tile, are
held in registers together, and read a panel once from memory; more tiles come to it again while it is in the second
cache. Memory is read all the while that is computed: each tile asks for its share of the panel that comes next.

Where one half of the columns gates the other, the panels of the two halves take turns, and the thread that has made a
gate makes what it gates next: what is between them, four times the result, never leaves the first cache.

Every element of the result is one chain of additions in float32 over its pairs in ascending order, whatever the number
of rows and threads: a row's bits do not depend on the others.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir

from smartspec.execution.machine import fetch_add, prefetch_lines
from smartspec.execution.vector_gate import gate_tile
from smartspec.native import address_of, carray, cgutils, intrinsic, njit, pointer, sources_of, types

COLUMNS = 32
"""Of a panel: two registers of weights for each pair of inputs."""
MOST_ROWS = 8
"""Sixteen sums keep the multipliers busy. Registers would hold twelve rows, but rows of 2,048 inputs lie such that all
of them fall into one set of the first cache, of eight places: a quarter of the speed was lost."""
PANELS_PER_ITEM = 2
"""Of two halves that take turns, one of each."""
AHEAD = 64
"""Pairs of a panel that a tile without company asks for in advance: 8 KiB, two pages."""
ASKING_ROWS = 8
"""Fewer compute so little that they wait for memory in any case, and asking costs them a little."""

NUM_FIELDS = 10
NEXT_ITEM, ROWS, PAIRS, COLUMNS_OF_W, X, W, BIAS, OUT, HALF, GATE = range(NUM_FIELDS)
"""Fields of the int64 parameter block. `HALF` is how many columns a half has where panels of halves take turns, else 0;
`GATE` the kind of act (see `vector_gate`) where the first half gates the second and the result has as many columns."""
_HUGE = 1 << 40

_LANES = 16
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_FLOATS, _INTEGERS = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(_I32, _LANES)
_PAIRS_OF_16, _ROUNDED = ir.VectorType(_BFloat(), 2 * _LANES), ir.VectorType(_BFloat(), _LANES)
_HALVES = ir.VectorType(ir.IntType(16), _LANES)


def paneled(weight: torch.Tensor, *, halves: bool = False) -> torch.Tensor:
    """The bfloat16 *weight* [out, in] as the kernel reads it: int32 [out / COLUMNS, in / 2, COLUMNS]; the panels of its
    two *halves* in turns, if they shall be."""
    pairs = in_turns(weight.contiguous().view(torch.int32)) if halves else weight.contiguous().view(torch.int32)
    return pairs.reshape(-1, COLUMNS, pairs.shape[1]).transpose(1, 2).contiguous()


def in_turns(columns: torch.Tensor) -> torch.Tensor:
    """*columns* [out, ...] with COLUMNS of the first half and COLUMNS of the second in turns."""
    return columns.reshape(2, -1, COLUMNS, *columns.shape[1:]).transpose(0, 1).flatten(0, 2)


def flat(panels: torch.Tensor, *, halves: bool = False) -> torch.Tensor:
    """The weight of which *panels* were made."""
    pairs = panels.transpose(1, 2)
    if halves:
        pairs = pairs.reshape(-1, 2, *pairs.shape[1:]).transpose(0, 1).flatten(0, 1)
    return pairs.flatten(0, 1).contiguous().view(torch.bfloat16)


def _emit(
    builder: Any, rows: int, x: Any, x_row: Any, w: Any, ahead: Any, stride: Any, pairs: Any, bias: Any, out: Any,
    out_row: Any,
) -> None:  # fmt: skip
    """Code for *rows* rows of one panel, which asks for memory from *ahead* on meanwhile, *stride* for each pair. What
    follows are addresses, and distances in elements."""
    module = builder.module
    dot = cgutils.get_or_insert_function(
        module, ir.FunctionType(_FLOATS, [_FLOATS, _PAIRS_OF_16, _PAIRS_OF_16]), "llvm.x86.avx512bf16.dpbf16ps.512"
    )
    sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(2)] for _ in range(rows)]
    for held in (held for row in sums for held in row):
        builder.store(ir.Constant(_FLOATS, [0.0] * _LANES), held)
    undefined, firsts = ir.Constant(_INTEGERS, ir.Undefined), ir.Constant(_INTEGERS, [0] * _LANES)
    begins = [builder.gep(x, [builder.mul(x_row, _I64(m))]) for m in range(rows)]
    with cgutils.for_range(builder, pairs) as loop:
        line = builder.gep(w, [builder.mul(loop.index, _I64(COLUMNS))])
        prefetch_lines(builder, builder.gep(ahead, [builder.mul(loop.index, stride)]), 2)
        weights = []
        for half in range(2):
            at = builder.bitcast(builder.gep(line, [_I64(half * _LANES)]), _INTEGERS.as_pointer())
            weights.append(builder.bitcast(builder.load(at, align=4), _PAIRS_OF_16))
        for begin, row in zip(begins, sums, strict=True):
            pair = builder.load(builder.gep(begin, [loop.index]), align=2)
            one = builder.insert_element(undefined, pair, _I32(0))
            everywhere = builder.bitcast(builder.shuffle_vector(one, undefined, firsts), _PAIRS_OF_16)
            for held, weight in zip(row, weights, strict=True):
                builder.store(builder.call(dot, [builder.load(held), everywhere, weight]), held)
    for m, row in enumerate(sums):
        for half, held in enumerate(row):
            more = builder.bitcast(builder.gep(bias, [_I64(half * _LANES)]), _FLOATS.as_pointer())
            total = builder.fadd(builder.load(held), builder.load(more, align=4))
            to = builder.gep(out, [builder.add(builder.mul(out_row, _I64(m)), _I64(half * _LANES))])
            rounded = builder.bitcast(builder.fptrunc(total, _ROUNDED), _HALVES)
            builder.store(rounded, builder.bitcast(to, _HALVES.as_pointer()), align=2)


@intrinsic
def _multiply_rows(
    typingctx: Any, rows: Any, x: Any, x_at: Any, w: Any, w_at: Any, ahead_at: Any, stride: Any, pairs: Any, bias: Any,
    bias_at: Any, out: Any, out_at: Any, out_row: Any,
) -> Any:  # fmt: skip
    """1 to MOST_ROWS *rows* of one panel, in registers over the whole sum; *stride* elements of `w` from *ahead_at* on
    are brought near for each pair."""
    index = types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def place(array: int, at: int) -> Any:
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            return builder.gep(data, [args[at]])

        stride, pairs, out_row = args[6], args[7], args[12]
        x_place, w_place, bias_place, out_place = place(1, 2), place(3, 4), place(8, 9), place(10, 11)
        ahead = place(3, 5)
        end = builder.append_basic_block("end")
        switch = builder.switch(args[0], end)
        for count in range(1, MOST_ROWS + 1):
            block = builder.append_basic_block(f"rows.{count}")
            switch.add_case(_I64(count), block)
            builder.position_at_end(block)
            _emit(builder, count, x_place, pairs, w_place, ahead, stride, pairs, bias_place, out_place, out_row)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(index, x, index, w, index, index, index, index, bias, index, out, index, index), codegen


@njit(error_model="numpy", nogil=True)
def _multiply(p: Any, x: Any, w: Any, bias: Any, out: Any) -> None:
    rows, pairs, columns, half, gate = p[ROWS], p[PAIRS], p[COLUMNS_OF_W], p[HALF], p[GATE]
    out_row = half if gate else columns
    gated = np.empty(MOST_ROWS * COLUMNS, np.uint16)
    tiles, width = (rows + MOST_ROWS - 1) // MOST_ROWS, PANELS_PER_ITEM * COLUMNS
    stride = (COLUMNS + tiles - 1) // tiles if rows >= ASKING_ROWS else 0
    begin = fetch_add(p, 1) * width
    while begin < columns:
        column, end = begin, min(begin + width, columns)
        while column < end:
            next_column = column + COLUMNS
            if next_column == end:  # now, so that what this thread does next is what it asks for
                begin = next_column = fetch_add(p, 1) * width
            if tiles == 1:
                ahead = column * pairs + AHEAD * COLUMNS
            else:
                ahead = (next_column if next_column < columns else column) * pairs
            panel, to = column // COLUMNS, column
            if half:
                to = panel // 2 * COLUMNS + (0 if gate else panel % 2 * half)
            for tile in range(tiles):  # of equal size, nearly: one row alone costs as much as several
                m = rows * tile // tiles
                count, at = rows * (tile + 1) // tiles - m, m * out_row + to
                is_gated = gate and panel % 2
                target, begin_at, row = (gated, 0, COLUMNS) if is_gated else (out, at, out_row)
                _multiply_rows(
                    count, x, m * pairs, w, column * pairs, ahead + tile * pairs * stride, stride, pairs,
                    bias, column, target, begin_at, row,
                )  # fmt: skip
                if is_gated:
                    gate_tile(out, at, out_row, gated, count, COLUMNS, gate)
            column += COLUMNS


def _entry(version: str) -> Any:
    def multiply(address: Any) -> None:
        _ = version  # what a closure holds is part of numba's cache key, what it calls is not
        p = carray(address, NUM_FIELDS, np.int64)
        _multiply(
            p,
            carray(pointer(p[X]), _HUGE, np.uint32),
            carray(pointer(p[W]), _HUGE, np.uint32),
            carray(pointer(p[BIAS]), _HUGE, np.float32),
            carray(pointer(p[OUT]), _HUGE, np.uint16),
        )

    return multiply


@cache
def kernel() -> int:
    """The address of a C function `void f(int64_t *parameters)`, which any number of threads may run together;
    `parameters[next_item]` must be 0 before. Only where what is compiled for is `native.BFLOAT16`."""
    return address_of(_entry(sources_of(__file__, "machine", "vector_gate", "vector_lanes")))
