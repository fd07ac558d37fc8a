"""The softmax of the compiled attention in LLVM's own vector types: exponentials and sums in an order fixed here.

Sums run through 16 lanes, then pairwise over those: further lanes of zeros change no bit of a result.
"""

from typing import Any

from llvmlite import ir

from smartspec.execution.vector_lanes import Lanes
from smartspec.native import cgutils, intrinsic, types

WIDTH = 16
LOWEST = -1e30
"""A score that weighs nothing; finite, so that no difference of scores is ever undefined."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """e**x of one float32 x <= 88."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Lanes(builder, 1).exp(args[0])

    return types.float32(types.float32), codegen


@intrinsic
def mask_and_scale(
    typingctx: Any, scores: Any, at: Any, lanes: Any, low: Any, high: Any, scale: Any, softcap: Any, top: Any
) -> Any:
    """Scale *lanes* scores (a multiple of 16) from index *at* on, cap them when *softcap* > 0, and set those outside
    low <= lane < high to LOWEST; the largest of them and *top* is returned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, at, lanes, low, high, scale, softcap, top = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        v = Lanes(builder, WIDTH)
        largest = cgutils.alloca_once_value(builder, v.splat(top))
        iota = ir.Constant(v.ints, list(range(WIDTH)))
        first, end = (v.splat(builder.trunc(x, _I32)) for x in (low, high))
        factor, cap = v.splat(scale), v.splat(softcap)
        capped = builder.fcmp_ordered(">", softcap, _F32(0.0))
        with cgutils.for_range(builder, builder.lshr(lanes, _I64(4))) as loop:
            lane = builder.shl(loop.index, _I64(4))
            pointer = builder.bitcast(builder.gep(data, [builder.add(at, lane)]), v.type.as_pointer())
            score = cgutils.alloca_once_value(builder, builder.fmul(builder.load(pointer, align=4), factor))
            with builder.if_then(capped):
                builder.store(builder.fmul(cap, v.tanh(builder.fdiv(builder.load(score), cap))), score)
            place = builder.add(v.splat(builder.trunc(lane, _I32)), iota)
            seen = builder.and_(builder.icmp_signed(">=", place, first), builder.icmp_signed("<", place, end))
            masked = builder.select(seen, builder.load(score), v.value(LOWEST))
            builder.store(masked, pointer, align=4)
            builder.store(v.larger(builder.load(largest), masked), largest)
        return v.reduce(builder.load(largest), v.larger)

    f32, i64 = types.float32, types.int64
    return f32(scores, i64, i64, i64, i64, f32, f32, f32), codegen


@intrinsic
def exponentiate(typingctx: Any, scores: Any, at: Any, lanes: Any, top: Any) -> Any:
    """Turn *lanes* scores (a multiple of 16) from index *at* on into e**(score - top); their sum is returned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, at, lanes, top = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        v = Lanes(builder, WIDTH)
        total = cgutils.alloca_once_value(builder, v.value(0.0))
        highest = v.splat(top)
        with cgutils.for_range(builder, builder.lshr(lanes, _I64(4))) as loop:
            lane = builder.add(at, builder.shl(loop.index, _I64(4)))
            pointer = builder.bitcast(builder.gep(data, [lane]), v.type.as_pointer())
            weight = v.exp(builder.fsub(builder.load(pointer, align=4), highest))
            builder.store(weight, pointer, align=4)
            builder.store(builder.fadd(builder.load(total), weight), total)
        return v.reduce(builder.load(total), builder.fadd)

    f32, i64 = types.float32, types.int64
    return f32(scores, i64, i64, f32), codegen
