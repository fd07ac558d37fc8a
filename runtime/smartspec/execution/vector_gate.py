"""The gate of a feed-forward layer, out = act(gate) * up, on bfloat16 lines that a product has just left in the first
cache.

Every act here is g * sigmoid(g * (a + b * g**2)): SiLU with a = 1 and b = 0, and GELU by its tanh form.
"""

from math import pi, sqrt
from typing import Any

from llvmlite import ir

from smartspec.execution.machine import rounded_bits
from smartspec.execution.vector_lanes import Lanes
from smartspec.native import intrinsic, njit, types

SILU, GELU_TANH = 1, 2
"""Kinds of act."""
WIDTH = 16
_GELU = (2 * sqrt(2 / pi), 2 * sqrt(2 / pi) * 0.044715)

_I16, _I32 = ir.VectorType(ir.IntType(16), WIDTH), ir.VectorType(ir.IntType(32), WIDTH)


@intrinsic
def _gate_16(typingctx: Any, out: Any, at: Any, up: Any, up_at: Any, kind: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Lanes(builder, WIDTH)

        def place(array: int) -> Any:
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            return builder.bitcast(builder.gep(data, [args[array + 1]]), _I16.as_pointer())

        def wide(array: int) -> Any:
            bits = builder.zext(builder.load(place(array), align=2), _I32)
            return builder.bitcast(builder.shl(bits, v.integer(16)), v.type)

        gate, is_gelu = wide(0), builder.icmp_signed("==", args[4], ir.IntType(64)(GELU_TANH))
        linear, cubic = (
            v.splat(builder.select(is_gelu, ir.FloatType()(number), ir.FloatType()(plain)))
            for number, plain in zip(_GELU, (1.0, 0.0), strict=True)
        )
        inner = builder.fmul(gate, v.fma(cubic, builder.fmul(gate, gate), linear))
        # e**88 is as good as what is beyond float32.
        grown = v.exp(v.smaller(builder.fneg(inner), v.value(88.0)))
        active = builder.fdiv(gate, builder.fadd(grown, v.value(1.0)))
        rounded = rounded_bits(builder, builder.fmul(active, wide(2)), _I32)
        builder.store(builder.trunc(rounded, _I16), place(0), align=2)
        return context.get_dummy_value()

    return types.void(out, types.int64, up, types.int64, types.int64), codegen


@njit()
def gate_tile(out: Any, at: int, row: int, up: Any, rows: int, columns: int, kind: int) -> None:
    """out[at + m * row + n] = act(itself) * up[m * columns + n] for m < rows, n < columns, a multiple of 16."""
    for m in range(rows):
        for n in range(0, columns, WIDTH):
            _gate_16(out, at + m * row + n, up, m * columns + n, kind)
