"""The softmax of the compiled attention in LLVM's own vector types: exponentials and sums in an order fixed here.

Sums run through 16 lanes, then pairwise over those: further lanes of zeros change no bit of a result.
"""

from typing import Any

from llvmlite import ir

from smartspec.native import cgutils, intrinsic, types

WIDTH = 16
LOWEST = -1e30
"""A score that weighs nothing; finite, so that no difference of scores is ever undefined."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


class _Lanes:
    """Arithmetic on *width* float32 lanes (1: a scalar) through *builder*."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder, self.width = builder, width
        self.type: Any = ir.VectorType(_F32, width) if width > 1 else _F32
        self.ints: Any = ir.VectorType(_I32, width) if width > 1 else _I32

    def value(self, number: float) -> Any:
        return ir.Constant(self.type, [number] * self.width if self.width > 1 else number)

    def integer(self, number: int) -> Any:
        return ir.Constant(self.ints, [number] * self.width if self.width > 1 else number)

    def splat(self, scalar: Any) -> Any:
        if self.width == 1:
            return scalar
        undefined = ir.Constant(self.type if scalar.type == _F32 else self.ints, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, _I32(0))
        return self.builder.shuffle_vector(
            one, undefined, ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        )

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        name = f"llvm.fma.v{self.width}f32" if self.width > 1 else "llvm.fma.f32"
        kind = ir.FunctionType(self.type, [self.type] * 3)
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def larger(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def smaller(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def exp(self, x: Any) -> Any:
        """e**x for x <= 88 within 2 units in the last place; exactly 1 at 0, and 0 below -87.

        Cody-Waite reduction and the polynomial of Cephes' expf.
        """
        b, c = self.builder, self.value
        clamped = self.larger(x, c(-87.0))
        # Adding 1.5 * 2**23 rounds to an integer, which then stands in the low bits.
        shifted = b.fadd(b.fmul(clamped, c(1.4426950216293335)), c(12582912.0))
        n = b.fsub(shifted, c(12582912.0))
        r = self.fma(n, c(-0.693359375), clamped)
        r = self.fma(n, c(2.1219444170128554e-4), r)
        poly = c(1.9875691214110702e-4)
        for number in (
            1.398199936375022e-3,
            8.333452045917511e-3,
            4.1665795892477036e-2,
            1.6666665673255920e-1,
            0.5,
        ):
            poly = self.fma(poly, r, c(number))
        value = b.fadd(self.fma(poly, b.fmul(r, r), r), c(1.0))
        exponent = b.add(b.bitcast(shifted, self.ints), self.integer((127 - 0x4B400000) & 0xFFFFFFFF))
        power = b.bitcast(b.shl(exponent, self.integer(23)), self.type)
        return b.select(b.fcmp_ordered("<", x, c(-87.0)), c(0.0), b.fmul(value, power))

    def tanh(self, x: Any) -> Any:
        b, c = self.builder, self.value
        bounded = self.smaller(self.larger(x, c(-12.0)), c(12.0))
        grown = self.exp(b.fadd(bounded, bounded))
        return b.fdiv(b.fsub(grown, c(1.0)), b.fadd(grown, c(1.0)))

    def reduce(self, values: Any, combine: Any) -> Any:
        """One scalar of all lanes, halves combined with halves."""
        undefined, half = ir.Constant(self.type, ir.Undefined), self.width // 2
        while half:
            order = [(i + half) % self.width for i in range(self.width)]
            other = self.builder.shuffle_vector(values, undefined, ir.Constant(ir.VectorType(_I32, self.width), order))
            values, half = combine(values, other), half // 2
        return self.builder.extract_element(values, _I32(0))


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """e**x of one float32 x <= 88."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _Lanes(builder, 1).exp(args[0])

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
        v = _Lanes(builder, WIDTH)
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
        v = _Lanes(builder, WIDTH)
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
