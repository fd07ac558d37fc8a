"""The inner product of the compiled attention, written in LLVM's own vector types: out += a @ b.

A compiler may vectorise a loop or not, and choose an order for a sum; here both are part of the result's bits and of
the speed, so nothing is left to it: every element of `out` gets two chains of fused multiply-adds, over the even and
the odd indices in ascending order (two, to hide the latency of one), whatever the number of rows computed together.
`b` is read where it lies (float32, or bfloat16 as uint16), and widened in registers.
"""

from typing import Any

from llvmlite import ir

from smartspec.native import cgutils, intrinsic, njit, types

WIDTH = 16
"""Lanes of a vector: one AVX-512 register of float32, two of AVX2, four of NEON."""

_I64, _F32 = ir.IntType(64), ir.FloatType()


def _tile(rows: int, groups: int, width: int) -> Any:
    """An intrinsic for *rows* x (*groups* * *width*) elements of out, held in registers over the whole sum."""
    lanes: Any = ir.VectorType(_F32, width) if width > 1 else _F32
    fma_name = f"llvm.fma.v{width}f32" if width > 1 else "llvm.fma.f32"

    def widen(builder: Any, pointer: Any, is_float: bool) -> Any:
        if is_float:
            return builder.load(builder.bitcast(pointer, lanes.as_pointer()), align=4)
        half: Any = ir.VectorType(ir.IntType(16), width) if width > 1 else ir.IntType(16)
        full: Any = ir.VectorType(ir.IntType(32), width) if width > 1 else ir.IntType(32)
        bits = builder.zext(builder.load(builder.bitcast(pointer, half.as_pointer()), align=2), full)
        shift = ir.Constant(full, [16] * width if width > 1 else 16)
        return builder.bitcast(builder.shl(bits, shift), lanes)

    def splat(builder: Any, scalar: Any) -> Any:
        if width == 1:
            return scalar
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), scalar, ir.IntType(32)(0))
        return builder.shuffle_vector(
            one, ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        )

    @intrinsic
    def tile(
        typingctx: Any, a: Any, a_at: Any, a_row: Any, b: Any, b_at: Any, b_row: Any, out: Any, out_at: Any,
        out_row: Any, count: Any,
    ) -> Any:  # fmt: skip
        index = types.int64

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            arrays = [context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 6)]
            a_data, b_data, out_data = arrays
            a_start, a_stride, b_start, b_stride, out_start, out_stride, length = (
                args[i] for i in (1, 2, 4, 5, 7, 8, 9)
            )
            is_float = signature.args[3].dtype == types.float32
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(lanes, [lanes] * 3), fma_name)
            places = []
            for m in range(rows):
                for g in range(groups):
                    at = builder.add(out_start, builder.add(builder.mul(out_stride, _I64(m)), _I64(g * width)))
                    pointer = builder.bitcast(builder.gep(out_data, [at]), lanes.as_pointer())
                    even, odd = cgutils.alloca_once(builder, lanes), cgutils.alloca_once(builder, lanes)
                    builder.store(builder.load(pointer, align=4), even)
                    builder.store(ir.Constant(lanes, [0.0] * width if width > 1 else 0.0), odd)
                    places.append((pointer, even, odd))
            a_rows = [builder.add(a_start, builder.mul(a_stride, _I64(m))) for m in range(rows)]

            def add_line(i: Any, chain: int) -> None:
                b_line = builder.add(b_start, builder.mul(b_stride, i))
                line = [
                    widen(builder, builder.gep(b_data, [builder.add(b_line, _I64(g * width))]), is_float)
                    for g in range(groups)
                ]
                for m in range(rows):
                    factor = splat(builder, builder.load(builder.gep(a_data, [builder.add(a_rows[m], i)])))
                    for g in range(groups):
                        held = places[m * groups + g][1 + chain]
                        builder.store(builder.call(fma, [factor, line[g], builder.load(held)]), held)

            with cgutils.for_range(builder, builder.lshr(length, _I64(1))) as loop:
                i = builder.shl(loop.index, _I64(1))
                add_line(i, 0)
                add_line(builder.add(i, _I64(1)), 1)
            with builder.if_then(builder.trunc(length, ir.IntType(1))):
                add_line(builder.sub(length, _I64(1)), 0)
            for pointer, even, odd in places:
                builder.store(builder.fadd(builder.load(even), builder.load(odd)), pointer, align=4)
            return context.get_dummy_value()

        return types.void(a, index, index, b, index, index, out, index, index, index), codegen

    return tile


_tile_4x1, _tile_2x2, _tile_1x4 = _tile(4, 1, WIDTH), _tile(2, 2, WIDTH), _tile(1, 4, WIDTH)
_tile_2x1, _tile_1x1, _tile_scalar = _tile(2, 1, WIDTH), _tile(1, 1, WIDTH), _tile(1, 1, 1)


@njit()
def multiply_add(
    a: Any, a_at: int, a_row: int, b: Any, b_at: int, b_row: int, out: Any, out_at: int, out_row: int,
    rows: int, lanes: int, count: int,
) -> None:  # fmt: skip
    """out[m, n] += sum over i < count of a[m, i] * b[i, n] for m < rows, n < lanes.

    The arrays are flat; `x_at` is where each begins and `x_row` the distance of its rows. a and out are float32.
    """
    m = 0
    while m < rows:
        left = rows - m
        a_m, out_m, n = a_at + m * a_row, out_at + m * out_row, 0
        if left >= 4:
            while n + 16 <= lanes:
                _tile_4x1(a, a_m, a_row, b, b_at + n, b_row, out, out_m + n, out_row, count)
                n += 16
            step = 4
        elif left >= 2:
            while n + 32 <= lanes:
                _tile_2x2(a, a_m, a_row, b, b_at + n, b_row, out, out_m + n, out_row, count)
                n += 32
            while n + 16 <= lanes:
                _tile_2x1(a, a_m, a_row, b, b_at + n, b_row, out, out_m + n, out_row, count)
                n += 16
            step = 2
        else:
            while n + 64 <= lanes:
                _tile_1x4(a, a_m, a_row, b, b_at + n, b_row, out, out_m + n, out_row, count)
                n += 64
            while n + 16 <= lanes:
                _tile_1x1(a, a_m, a_row, b, b_at + n, b_row, out, out_m + n, out_row, count)
                n += 16
            step = 1
        while n < lanes:  # a dimension that is no multiple of 16: right, not fast
            for i in range(step):
                _tile_scalar(
                    a, a_m + i * a_row, a_row, b, b_at + n, b_row, out, out_m + i * out_row + n, out_row, count
                )
            n += 1
        m += step
