"""Arithmetic of float32 lanes in LLVM's own vector types, with functions that it has no vector form of."""

from typing import Any

from llvmlite import ir

from smartspec.native import cgutils

_I32, _F32 = ir.IntType(32), ir.FloatType()


class Lanes:
    """Arithmetic on *width* float32 lanes (1: a scalar) through *builder*."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder, self.width = builder, width
        self.type: Any = ir.VectorType(_F32, width) if width > 1 else _F32
        self.ints: Any = ir.VectorType(_I32, width) if width > 1 else _I32

    def value(self, number: float) -> Any:
        """*number* in each lane."""
        return ir.Constant(self.type, [number] * self.width if self.width > 1 else number)

    def integer(self, number: int) -> Any:
        """The integer *number* in each lane."""
        return ir.Constant(self.ints, [number] * self.width if self.width > 1 else number)

    def splat(self, scalar: Any) -> Any:
        """A value in each lane."""
        if self.width == 1:
            return scalar
        undefined = ir.Constant(self.type if scalar.type == _F32 else self.ints, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, _I32(0))
        return self.builder.shuffle_vector(
            one, undefined, ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        )

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        name = f"llvm.fma.v{self.width}f32" if self.width > 1 else "llvm.fma.f32"
        kind = ir.FunctionType(self.type, [self.type] * 3)
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def larger(self, a: Any, b: Any) -> Any:
        """The larger of two; *b* where one is no number."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def smaller(self, a: Any, b: Any) -> Any:
        """The smaller of two; *b* where one is no number."""
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
        """The hyperbolic tangent, by `exp`."""
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
