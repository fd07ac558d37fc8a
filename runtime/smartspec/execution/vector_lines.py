"""Lines of elements in and out of the compiled attention, sixteen at a time: what a compiler makes of a loop over
indices that it must not trust (they could be negative) gathers them one by one."""

from typing import Any

from llvmlite import ir

from smartspec.execution.machine import narrow, rounded_bits, widen
from smartspec.native import intrinsic, njit, types

WIDTH = 16

_I16, _I32, _F32 = (ir.VectorType(kind, WIDTH) for kind in (ir.IntType(16), ir.IntType(32), ir.FloatType()))


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any, lanes: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), lanes.as_pointer())


@intrinsic
def _widen_16(typingctx: Any, source: Any, at: Any, target: Any, to: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        is_float = signature.args[0].dtype == types.float32
        begin = _place(context, builder, signature.args[0], args[0], args[1], _F32 if is_float else _I16)
        value = builder.load(begin, align=4 if is_float else 2)
        if not is_float:
            shift = ir.Constant(_I32, [16] * WIDTH)
            value = builder.bitcast(builder.shl(builder.zext(value, _I32), shift), _F32)
        builder.store(value, _place(context, builder, signature.args[2], args[2], args[3], _F32), align=4)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@intrinsic
def _narrow_16(typingctx: Any, source: Any, at: Any, factor: Any, target: Any, to: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        is_float = signature.args[3].dtype == types.float32
        undefined = ir.Constant(_F32, ir.Undefined)
        one = builder.insert_element(undefined, args[2], ir.IntType(32)(0))
        factors = builder.shuffle_vector(one, undefined, ir.Constant(_I32, [0] * WIDTH))
        begin = _place(context, builder, signature.args[0], args[0], args[1], _F32)
        value = builder.fmul(builder.load(begin, align=4), factors)
        end = _place(context, builder, signature.args[3], args[3], args[4], _F32 if is_float else _I16)
        if is_float:
            builder.store(value, end, align=4)
        else:
            builder.store(builder.trunc(rounded_bits(builder, value, _I32), _I16), end, align=2)
        return context.get_dummy_value()

    return types.void(source, types.int64, types.float32, target, types.int64), codegen


@njit()
def widen_line(source: Any, at: int, target: Any, to: int, count: int) -> None:
    """target[to + i] = source[at + i] as float32, for i < count; flat arrays."""
    i = 0
    while i + WIDTH <= count:
        _widen_16(source, at + i, target, to + i)
        i += WIDTH
    while i < count:
        target[to + i] = widen(source[at + i])
        i += 1


@njit()
def narrow_line(source: Any, at: int, factor: Any, target: Any, to: int, count: int) -> None:
    """target[to + i] = source[at + i] * factor in the type of *target*, for i < count; flat arrays."""
    i = 0
    while i + WIDTH <= count:
        _narrow_16(source, at + i, factor, target, to + i)
        i += WIDTH
    while i < count:
        target[to + i] = narrow(source[at + i] * factor, target[to + i])
        i += 1
