"""Float32 arithmetic over bfloat16 bits, for compiled CPU kernels: numba knows no bfloat16, so bits are handled here.

A bfloat16 is the upper half of a float32. Tensors of it reach a kernel as uint16; these intrinsics widen an element to
float32, round one back (to nearest, ties to even, as torch does), and build the pieces an exponential needs. They
compile to a few instructions on whole vectors, which calls into a maths library would not.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


@intrinsic  # type: ignore[untyped-decorator]
def widen(typingctx: Any, element: Any) -> Any:
    """float32 of a float32 (itself) or of a uint16 that holds a bfloat16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] == types.float32:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)

    return types.float32(element), codegen


@intrinsic  # type: ignore[untyped-decorator]
def narrow(typingctx: Any, value: Any, like: Any) -> Any:
    """float32 *value* as an element of the type of *like*: float32, or uint16 that holds a bfloat16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.return_type == types.float32:
            return args[0]
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.add(bits, builder.add(odd, _I32(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, _I32(16)), _I16)

    return like(value, like), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _power_of_two(typingctx: Any, shifted: Any) -> Any:
    """2**n for the integer n that was rounded into the low bits of *shifted* by adding 1.5 * 2**23."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I32)
        exponent = builder.add(bits, _I32((127 - 0x4B400000) & 0xFFFFFFFF))
        return builder.bitcast(builder.shl(exponent, _I32(23)), _F32)

    return types.float32(shifted), codegen


@intrinsic  # type: ignore[untyped-decorator]
def fetch_add(typingctx: Any, array: Any, amount: Any) -> Any:
    """Add *amount* to the first element of an int64 *array* atomically; the value before is returned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, args[1], "seq_cst")

    return types.int64(array, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typingctx: Any, address: Any) -> Any:
    """The memory at an integer *address*, for `numba.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


_LOG2_E = np.float32(1.4426950408889634)
_SHIFT = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, kept in the low bits
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_LEAST = np.float32(-87.0)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_C2, _C3, _C4 = np.float32(0.5), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6, _C7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)


@njit(inline="always")  # type: ignore[untyped-decorator]
def exp(x: Any) -> Any:
    """e**x for float32 x <= 88 within 2 units in the last place; exactly 1 at 0, and 0 below -87.

    Cody-Waite reduction and the polynomial of Cephes' expf.
    """
    clamped = max(x, _LEAST)
    shifted = clamped * _LOG2_E + _SHIFT
    n = shifted - _SHIFT
    r = (clamped - n * _LN2_HIGH) - n * _LN2_LOW
    poly = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    value = (poly * (r * r) + r + _ONE) * _power_of_two(shifted)
    return _ZERO if x < _LEAST else value


@njit(inline="always")  # type: ignore[untyped-decorator]
def tanh(x: Any) -> Any:
    """Hyperbolic tangent of a float32."""
    clamped = min(max(x, np.float32(-12.0)), np.float32(12.0))
    grown = exp(clamped + clamped)
    return (grown - _ONE) / (grown + _ONE)
