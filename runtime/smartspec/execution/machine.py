"""What compiled CPU kernels need of a machine that numba does not offer: bfloat16, atomics, prefetching.

A bfloat16 is the upper half of a float32. Tensors of it reach a kernel as uint16; `widen` makes an element float32 and
`narrow` rounds one back to nearest, ties to even, as torch does.
"""

from typing import Any

from llvmlite import ir

from smartspec.native import cgutils, intrinsic, types

LINE = 64
"""Bytes that come from memory together."""

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


@intrinsic
def widen(typingctx: Any, element: Any) -> Any:
    """float32 of a float32 (itself) or of a uint16 that holds a bfloat16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] == types.float32:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)

    return types.float32(element), codegen


def rounded_bits(builder: Any, value: Any, ints: Any) -> Any:
    """The bits of the bfloat16 nearest to float32 *value*, ties to even, in *ints*; both one number or a vector."""

    def constant(number: int) -> Any:
        return ir.Constant(ints, [number] * ints.count if isinstance(ints, ir.VectorType) else number)

    bits = builder.bitcast(value, ints)
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    return builder.lshr(builder.add(bits, builder.add(odd, constant(0x7FFF))), constant(16))


@intrinsic
def narrow(typingctx: Any, value: Any, like: Any) -> Any:
    """float32 *value* as an element of the type of *like*: float32, or uint16 that holds a bfloat16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.return_type == types.float32:
            return args[0]
        return builder.trunc(rounded_bits(builder, args[0], _I32), _I16)

    return like(value, like), codegen


@intrinsic
def fetch_add(typingctx: Any, array: Any, amount: Any) -> Any:
    """Add *amount* to the first element of an int64 *array* atomically; the value before is returned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, args[1], "seq_cst")

    return types.int64(array, types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, start: Any, count: Any) -> Any:
    """Ask for *count* elements of *array* from index *start* on to be brought near: into the second cache, for the
    first is full of what is computed with."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        line = LINE // context.get_abi_sizeof(data.type.pointee)
        begin, index = args[1], args[1].type
        with cgutils.for_range_slice(builder, index(0), args[2], index(line)) as (offset, _):
            prefetch_lines(builder, builder.gep(data, [builder.add(begin, offset)]), 1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


def prefetch_lines(builder: Any, address: Any, count: int) -> None:
    """Code that asks for *count* lines from *address* on to be brought into the second cache."""
    byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    first = builder.bitcast(address, byte)
    for line in range(count):
        builder.call(function, [builder.gep(first, [ir.IntType(64)(LINE * line)]), i32(0), i32(2), i32(1)])
