"""Many small structs as columns of numbers: written by msgspec's encoder, read back by a compiled loop.

To read 256 requests field by field takes Python longer than it takes to choose what to speculate for them.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from smartspec.native import njit, types
from smartspec.policy.regression import Ints

NOTHING = -1
"""What stands for None."""

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_encoder = msgspec.msgpack.Encoder()


def columns_of(structs: Sequence[msgspec.Struct]) -> Ints:
    """The fields of *structs*, at least one and all of one kind made with `array_like`, as numbers [field, struct]:
    integers and booleans as they are, a text by its first letter's code, None as -1. Raises ValueError for a field that
    is anything else."""
    found = np.empty((len(structs[0].__struct_fields__), len(structs)), dtype=np.intp)
    _read(np.frombuffer(_encoder.encode(structs), dtype=np.uint8), found)
    return found


def by_letter(number: dict[Any, int]) -> Ints:
    """A table that turns texts' first letters, as `columns_of` has them, into numbers. Raises ValueError where two
    texts begin alike."""
    table = np.zeros(128, dtype=np.intp)
    letters = {ord(text[0]): value for text, value in number.items()}
    if len(letters) < len(number):
        raise ValueError(f"{sorted(number)} cannot be told apart by their first letters")
    for letter, value in letters.items():
        table[letter] = value
    return table


@njit(types.int64(_BYTES, types.int64, types.int64), cache=True)
def _integer(data: Any, at: int, size: int) -> int:
    """The unsigned integer in *size* bytes from *at* on, greatest byte first."""
    number = 0
    for i in range(size):
        number = number << 8 | data[at + i]
    return number


@njit(types.void(_BYTES, types.int64[:, ::1]), cache=True)
def _read(data: Any, found: Any) -> None:
    """An array of arrays in MessagePack (https://github.com/msgpack/msgpack, spec.md) into `found` [F, R]."""
    num_fields, num_rows = found.shape
    at = 1 if data[0] < 0xA0 else 3 if data[0] == 0xDC else 5
    for r in range(num_rows):
        at += 1 if num_fields < 16 else 3
        for f in range(num_fields):
            kind, at = _integer(data, at, 1), at + 1
            size, length = 0, -1
            if kind < 0x80:
                found[f, r] = kind
            elif 0xA0 <= kind < 0xC0:
                length = kind - 0xA0
            elif kind == 0xC0:
                found[f, r] = NOTHING
            elif kind == 0xC2 or kind == 0xC3:
                found[f, r] = kind - 0xC2
            elif 0xCC <= kind < 0xD0:
                size = 1 << (kind - 0xCC)
                found[f, r] = _integer(data, at, size)
            elif 0xD0 <= kind < 0xD4:
                size = 1 << (kind - 0xD0)
                found[f, r] = _integer(data, at, size) - (1 << (8 * size) if size < 8 else 0)
            elif 0xD9 <= kind < 0xDC:
                size = 1 << (kind - 0xD9)
                length = _integer(data, at, size)
            elif kind >= 0xE0:
                found[f, r] = kind - 0x100
            else:
                raise ValueError("a field is no integer, text or None")
            if length >= 0:
                found[f, r] = data[at + size] if length else 0
                size += length
            at += size
