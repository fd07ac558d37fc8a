"""Paged attention on the CPU, compiled: every row computed alone, so that its bits never depend on its company.

A row (one token's query of one head) walks its keys in chunks at absolute positions, accumulates in ascending order of
position, and shares with other rows only the loads. Its result is therefore the same bit for bit whether it is computed
in a prefill chunk of any size, a decode step or a verification, alone or in a batch, in float32 and in bfloat16.
Nothing is copied or padded to the longest context: a row touches its own blocks and no others.

Layouts: keys [num_blocks, num_kv_heads, Dk, block_size], so that a vector register spans positions; values
[num_blocks, num_kv_heads, block_size, Dv], so that it spans channels: no horizontal sums, whose order a compiler might
choose.

Work is cut into (tile of consecutive rows of one request) x (`heads_per_item` KV heads), taken by threads from an
atomic counter, heads by heads: the tiles of one long context spread over all threads. How many heads are taken together
is no part of a result.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from smartspec.execution.machine import fetch_add, prefetch
from smartspec.execution.vector_lines import narrow_line, widen_line
from smartspec.execution.vector_softmax import LOWEST, exp, exponentiate, mask_and_scale
from smartspec.execution.vector_tiles import multiply_add
from smartspec.native import address_of, carray, float32, njit, pointer, sources_of

ELEMENTS = {32: np.float32, 16: np.uint16}
"""What keys and values consist of, by bits: a bfloat16 is held as an integer, see `machine`."""

CHUNK = 128
"""Positions whose scores are held at once; a constant, since the place of its borders is part of the result."""

# Fields of the int64 parameter block, in order. Strides are in elements.
FIELDS = (
    "next_item", "num_tiles", "num_heads", "num_kv_heads", "key_dim", "value_dim", "block_size", "window",
    "has_sinks", "query", "key", "value", "out", "key_cache", "value_cache", "tiles", "block_tables", "sinks",
    "query_row", "query_head", "key_row", "key_head", "value_row", "value_head", "floats", "heads_per_item",
)  # fmt: skip
_I = {name: i for i, name in enumerate(FIELDS)}
_NEXT, _TILES_N, _HEADS, _KV_HEADS = _I["next_item"], _I["num_tiles"], _I["num_heads"], _I["num_kv_heads"]
_DK, _DV, _BLOCK, _WINDOW, _HAS_SINKS = _I["key_dim"], _I["value_dim"], _I["block_size"], _I["window"], _I["has_sinks"]
_Q, _K, _V, _OUT, _KC, _VC = (_I[n] for n in ("query", "key", "value", "out", "key_cache", "value_cache"))
_TILES, _TABLES, _SINKS, _FLOATS = _I["tiles"], _I["block_tables"], _I["sinks"], _I["floats"]
_TOGETHER = _I["heads_per_item"]
_QR, _QH, _KR, _KH, _VR, _VH = (
    _I[n] for n in ("query_row", "query_head", "key_row", "key_head", "value_row", "value_head")
)
_N = len(FIELDS)
_HUGE = 1 << 40
_ZERO = np.float32(0.0)
_LOWEST = np.float32(LOWEST)


@njit(error_model="numpy", nogil=True)
def _attend(
    p: Any,
    query: Any,
    out: Any,
    key_cache: Any,
    value_cache: Any,
    tables: Any,
    tiles: Any,
    floats: Any,
    sinks: Any,
) -> None:
    num_tiles, num_heads, kv_heads = p[_TILES_N], p[_HEADS], p[_KV_HEADS]
    dk, dv, size, window = p[_DK], p[_DV], p[_BLOCK], p[_WINDOW]
    group = num_heads // kv_heads
    chunk = max(size, CHUNK // size * size)
    padded = (chunk + 15) // 16 * 16
    together = p[_TOGETHER]
    most = 0
    for t in range(num_tiles):
        most = max(most, tiles[t, 1])
    most *= group * together
    q = np.empty(most * dk, dtype=float32)
    scores = np.empty((most, padded), dtype=float32)
    acc = np.empty(most * dv, dtype=float32)
    tops = np.empty(most, dtype=float32)
    sums = np.empty(most, dtype=float32)
    flat_scores = scores.reshape(most * padded)
    scale, softcap = floats[0], floats[1]
    query_row, query_head = p[_QR], p[_QH]
    while True:
        item = fetch_add(p, 1)
        if item * together >= num_tiles * kv_heads:
            return
        part = item // num_tiles
        tile, head0 = item - part * num_tiles, part * together
        row0, count, pos0, table = tiles[tile, 0], tiles[tile, 1], tiles[tile, 2], tiles[tile, 3]
        each = count * group
        num_queries = each * together
        for m in range(num_queries):
            head, row = (head0 + m // each) * group + m % group, row0 + m % each // group
            widen_line(query, row * query_row + head * query_head, q, m * dk, dk)
        tops[:num_queries] = _LOWEST
        sums[:num_queries] = _ZERO
        acc[: num_queries * dv] = _ZERO
        last = pos0 + count - 1
        first = max(0, pos0 - window + 1)
        for origin in range(first // chunk * chunk, last + 1, chunk):
            begin, end = max(0, first - origin), min(chunk, last + 1 - origin)
            lanes = (end + 15) // 16 * 16
            blocks = range(begin // size, (end - 1) // size + 1)
            scores[:num_queries, :lanes] = _ZERO
            for b in blocks:
                at = (tables[table + origin // size + b] * kv_heads + head0) * size
                after = at
                if origin + (b + 1) * size <= last:
                    after = (tables[table + origin // size + b + 1] * kv_heads + head0) * size
                for h in range(together):
                    # Blocks lie anywhere, and pages end within them: the processor cannot guess what comes next, and
                    # would wait for it (a tenth to a fifth of the time).
                    prefetch(key_cache, (at + (h + 1) * size if h + 1 < together else after) * dk, size * dk)
                    multiply_add(
                        q, h * each * dk, dk, key_cache, (at + h * size) * dk, size,
                        flat_scores, h * each * padded + b * size, padded, each, size, dk,
                    )  # fmt: skip
            for m in range(num_queries):
                position = pos0 + m % each // group
                low = max(0, position - window + 1 - origin)
                high = min(chunk, position + 1 - origin)
                if high <= low:
                    scores[m, :lanes] = _ZERO
                    continue
                top = mask_and_scale(flat_scores, m * padded, lanes, low, high, scale, softcap, tops[m])
                total = exponentiate(flat_scores, m * padded, lanes, top)
                shrink = exp(tops[m] - top)
                tops[m] = top
                sums[m] = sums[m] * shrink + total
                for d in range(m * dv, (m + 1) * dv):
                    acc[d] *= shrink
            for b in blocks:
                at = (tables[table + origin // size + b] * kv_heads + head0) * size
                after = at
                if b + 1 < blocks.stop:
                    after = (tables[table + origin // size + b + 1] * kv_heads + head0) * size
                # From an even place in the block on: the two chains of the sum alternate by place.
                skipped = max(0, begin - b * size) // 2 * 2
                i, j = b * size + skipped, min(end, (b + 1) * size)
                for h in range(together):
                    prefetch(value_cache, (at + (h + 1) * size if h + 1 < together else after) * dv, size * dv)
                    multiply_add(
                        flat_scores, h * each * padded + i, padded, value_cache, (at + h * size + skipped) * dv, dv,
                        acc, h * each * dv, dv, each, dv, j - i,
                    )  # fmt: skip
        for m in range(num_queries):
            total, shrink = sums[m], np.float32(1.0)
            head, row = (head0 + m // each) * group + m % group, row0 + m % each // group
            if p[_HAS_SINKS]:
                top = max(tops[m], sinks[head])
                shrink = exp(tops[m] - top)
                total = total * shrink + exp(sinks[head] - top)
            narrow_line(acc, m * dv, shrink / total, out, (row * num_heads + head) * dv, dv)


@njit(error_model="numpy", nogil=True)
def _write(p: Any, key: Any, value: Any, key_cache: Any, value_cache: Any, tables: Any, tiles: Any) -> None:
    num_tiles, kv_heads, dk, dv, size = p[_TILES_N], p[_KV_HEADS], p[_DK], p[_DV], p[_BLOCK]
    while True:
        tile = fetch_add(p, 1)
        if tile >= num_tiles:
            return
        row0, count, pos0, table = tiles[tile, 0], tiles[tile, 1], tiles[tile, 2], tiles[tile, 3]
        for r in range(count):
            position = pos0 + r
            block = tables[table + position // size]
            slot = position % size
            for head in range(kv_heads):
                target = (block * kv_heads + head) * size
                k_source = (row0 + r) * p[_KR] + head * p[_KH]
                for d in range(dk):
                    key_cache[target * dk + d * size + slot] = key[k_source + d]
                v_source = (row0 + r) * p[_VR] + head * p[_VH]
                for d in range(dv):
                    value_cache[(target + slot) * dv + d] = value[v_source + d]


def _attend_entry(element: Any, version: str) -> Any:
    def attend(address: Any) -> None:
        _ = version  # what a closure holds is part of numba's cache key, what it calls is not
        p = carray(address, _N, np.int64)
        _attend(
            p,
            carray(pointer(p[_Q]), _HUGE, element),
            carray(pointer(p[_OUT]), _HUGE, element),
            carray(pointer(p[_KC]), _HUGE, element),
            carray(pointer(p[_VC]), _HUGE, element),
            carray(pointer(p[_TABLES]), _HUGE, np.int64),
            carray(pointer(p[_TILES]), (p[_TILES_N], 4), np.int64),
            carray(pointer(p[_FLOATS]), 2, np.float32),
            carray(pointer(p[_SINKS]), p[_HEADS], np.float32),
        )

    return attend


def _write_entry(element: Any, version: str) -> Any:
    def write(address: Any) -> None:
        _ = version
        p = carray(address, _N, np.int64)
        _write(
            p,
            carray(pointer(p[_K]), _HUGE, element),
            carray(pointer(p[_V]), _HUGE, element),
            carray(pointer(p[_KC]), _HUGE, element),
            carray(pointer(p[_VC]), _HUGE, element),
            carray(pointer(p[_TABLES]), _HUGE, np.int64),
            carray(pointer(p[_TILES]), (p[_TILES_N], 4), np.int64),
        )

    return write


@dataclass(frozen=True)
class Kernels:
    """Addresses of C functions `void f(int64_t *parameters)`: *write* stores a step's keys and values, *attend* reads.

    Any number of threads may run one call together; `parameters[next_item]` must be 0 before.
    """

    write: int
    attend: int


@cache
def kernels(element_bits: int) -> Kernels:
    """Compiled for float32 (32) or bfloat16 (16): some seconds the first time, then from numba's cache on disk."""
    element = ELEMENTS[element_bits]
    version = sources_of(__file__, "vector_tiles", "vector_softmax", "vector_lanes", "vector_lines", "machine")
    write, attend = (address_of(entry(element, version)) for entry in (_write_entry, _attend_entry))
    return Kernels(write, attend)
