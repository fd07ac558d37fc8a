"""Paged attention on the CPU, compiled: every row computed alone, so that its bits never depend on its company.

A row (one token's query of one head) walks its keys in chunks at absolute positions, accumulates in ascending order of
position, and shares with other rows only the loads. Its result is therefore the same bit for bit whether it is computed
in a prefill chunk of any size, a decode step or a verification, alone or in a batch, in float32 and in bfloat16.
Nothing is copied or padded to the longest context: a row touches its own blocks and no others.

Layouts: keys [num_blocks, num_kv_heads, Dk, block_size], so that a vector register spans positions; values
[num_blocks, num_kv_heads, block_size, Dv], so that it spans channels: no horizontal sums, whose order a compiler might
choose.

Work is cut into (tile of consecutive rows of one request) x (KV head), taken by threads from an atomic counter, head by
head: the tiles of one long context spread over all threads.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, float32, njit, types

from smartspec.execution.float_bits import exp, fetch_add, narrow, pointer, tanh, widen

CHUNK = 128
"""Positions whose scores are held at once; a constant, since the place of its borders is part of the result."""

# Fields of the int64 parameter block, in order. Strides are in elements.
FIELDS = (
    "next_item", "num_tiles", "num_heads", "num_kv_heads", "key_dim", "value_dim", "block_size", "window",
    "has_sinks", "query", "key", "value", "out", "key_cache", "value_cache", "tiles", "block_tables", "sinks",
    "query_row", "query_head", "key_row", "key_head", "value_row", "value_head", "floats", "num_rows",
)  # fmt: skip
_I = {name: i for i, name in enumerate(FIELDS)}
_NEXT, _TILES_N, _HEADS, _KV_HEADS = _I["next_item"], _I["num_tiles"], _I["num_heads"], _I["num_kv_heads"]
_DK, _DV, _BLOCK, _WINDOW, _HAS_SINKS = _I["key_dim"], _I["value_dim"], _I["block_size"], _I["window"], _I["has_sinks"]
_Q, _K, _V, _OUT, _KC, _VC = (_I[n] for n in ("query", "key", "value", "out", "key_cache", "value_cache"))
_TILES, _TABLES, _SINKS, _FLOATS = _I["tiles"], _I["block_tables"], _I["sinks"], _I["floats"]
_QR, _QH, _KR, _KH, _VR, _VH = (
    _I[n] for n in ("query_row", "query_head", "key_row", "key_head", "value_row", "value_head")
)
_ROWS = _I["num_rows"]
_N = len(FIELDS)
_HUGE = 1 << 40
_FASTMATH = {"contract", "nsz"}
_ZERO = np.float32(0.0)
_LOWEST = np.float32(-1e30)


@njit(fastmath=_FASTMATH, error_model="numpy")  # type: ignore[untyped-decorator]
def _scores(query: Any, keys: Any, scores: Any, num_queries: int, dim: int, lanes: int) -> None:
    """scores[m, j] = sum over d of query[m, d] * keys[d, j], d ascending whatever the grouping of queries."""
    m = 0
    while m + 4 <= num_queries:
        s0, s1, s2, s3 = scores[m], scores[m + 1], scores[m + 2], scores[m + 3]
        for j in range(lanes):
            s0[j] = _ZERO
            s1[j] = _ZERO
            s2[j] = _ZERO
            s3[j] = _ZERO
        for d in range(0, dim, 2):
            k0, k1 = keys[d], keys[d + 1]
            a0, b0 = query[m, d], query[m, d + 1]
            a1, b1 = query[m + 1, d], query[m + 1, d + 1]
            a2, b2 = query[m + 2, d], query[m + 2, d + 1]
            a3, b3 = query[m + 3, d], query[m + 3, d + 1]
            for j in range(lanes):
                x, y = k0[j], k1[j]
                s0[j] = (s0[j] + a0 * x) + b0 * y
                s1[j] = (s1[j] + a1 * x) + b1 * y
                s2[j] = (s2[j] + a2 * x) + b2 * y
                s3[j] = (s3[j] + a3 * x) + b3 * y
        m += 4
    while m < num_queries:
        s = scores[m]
        for j in range(lanes):
            s[j] = _ZERO
        for d in range(0, dim, 2):
            k0, k1 = keys[d], keys[d + 1]
            a, b = query[m, d], query[m, d + 1]
            for j in range(lanes):
                s[j] = (s[j] + a * k0[j]) + b * k1[j]
        m += 1


@njit(fastmath=_FASTMATH, error_model="numpy")  # type: ignore[untyped-decorator]
def _accumulate(weights: Any, values: Any, out: Any, num_queries: int, first: int, last: int, dim: int) -> None:
    """out[m, d] += sum over j of weights[m, j] * values[j, d], j ascending in pairs from an even *first*."""
    m = 0
    while m + 4 <= num_queries:
        o0, o1, o2, o3 = out[m], out[m + 1], out[m + 2], out[m + 3]
        for j in range(first, last + 1, 2):
            v0, v1 = values[j], values[j + 1]
            a0, b0 = weights[m, j], weights[m, j + 1]
            a1, b1 = weights[m + 1, j], weights[m + 1, j + 1]
            a2, b2 = weights[m + 2, j], weights[m + 2, j + 1]
            a3, b3 = weights[m + 3, j], weights[m + 3, j + 1]
            for d in range(dim):
                x, y = v0[d], v1[d]
                o0[d] = (o0[d] + a0 * x) + b0 * y
                o1[d] = (o1[d] + a1 * x) + b1 * y
                o2[d] = (o2[d] + a2 * x) + b2 * y
                o3[d] = (o3[d] + a3 * x) + b3 * y
        m += 4
    while m < num_queries:
        o = out[m]
        for j in range(first, last + 1, 2):
            v0, v1 = values[j], values[j + 1]
            a, b = weights[m, j], weights[m, j + 1]
            for d in range(dim):
                o[d] = (o[d] + a * v0[d]) + b * v1[d]
        m += 1


@njit(fastmath=_FASTMATH, error_model="numpy")  # type: ignore[untyped-decorator]
def _softmax(scores: Any, low: int, high: int, lanes: int, scale: Any, softcap: Any, top: Any, partial: Any) -> Any:
    """Turn raw scores into weights e**(s - top), 0 outside low..high; the new maximum and the sum of the weights.

    The sum runs through 16 partial sums by lane, then over those in order: more lanes of zeros change no bit.
    """
    if softcap > _ZERO:
        for j in range(lanes):
            scores[j] = softcap * tanh(scores[j] * scale / softcap)
    else:
        for j in range(lanes):
            scores[j] = scores[j] * scale
    for j in range(low):
        scores[j] = _LOWEST
    for j in range(high + 1, lanes):
        scores[j] = _LOWEST
    for j in range(lanes):
        top = max(top, scores[j])
    for i in range(16):
        partial[i] = _ZERO
    for j in range(0, lanes, 16):
        for i in range(16):
            weight = exp(scores[j + i] - top)
            scores[j + i] = weight
            partial[i] += weight
    for j in range(low):
        scores[j] = _ZERO
    for j in range(high + 1, lanes):
        scores[j] = _ZERO
    total = _ZERO
    for i in range(16):
        total += partial[i]
    return top, total


@njit(fastmath=_FASTMATH, error_model="numpy", nogil=True)  # type: ignore[untyped-decorator]
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
    lanes_all = (chunk + 15) // 16 * 16
    dk_even = (dk + 1) // 2 * 2
    most = 0
    for t in range(num_tiles):
        most = max(most, tiles[t, 1])
    most *= group
    q = np.zeros((most, dk_even), dtype=float32)
    scores = np.empty((most, lanes_all), dtype=float32)
    acc = np.empty((most, dv), dtype=float32)
    keys = np.zeros((dk_even, lanes_all), dtype=float32)
    values = np.zeros((lanes_all + 1, dv), dtype=float32)
    tops = np.empty(most, dtype=float32)
    sums = np.empty(most, dtype=float32)
    partial = np.empty(16, dtype=float32)
    scale, softcap = floats[0], floats[1]
    query_row, query_head = p[_QR], p[_QH]
    total_items = num_tiles * kv_heads
    while True:
        item = fetch_add(p, 1)
        if item >= total_items:
            return
        head = item // num_tiles
        tile = item - head * num_tiles
        row0, count, pos0, table = tiles[tile, 0], tiles[tile, 1], tiles[tile, 2], tiles[tile, 3]
        num_queries = count * group
        for r in range(count):
            for g in range(group):
                base = (row0 + r) * query_row + (head * group + g) * query_head
                m = r * group + g
                for d in range(dk):
                    q[m, d] = widen(query[base + d])
        for m in range(num_queries):
            tops[m] = _LOWEST
            sums[m] = _ZERO
            for d in range(dv):
                acc[m, d] = _ZERO
        last = pos0 + count - 1
        start = max(0, pos0 - window + 1) // chunk * chunk
        for origin in range(start, last + 1, chunk):
            first_lane = max(0, pos0 - window + 1 - origin)
            last_lane = min(chunk - 1, last - origin)
            lanes = (last_lane + 16) // 16 * 16
            for b in range(first_lane // size, last_lane // size + 1):
                block = tables[table + origin // size + b]
                source = (block * kv_heads + head) * size
                for d in range(dk):
                    k_row = source * dk + d * size
                    for j in range(size):
                        keys[d, b * size + j] = widen(key_cache[k_row + j])
                for j in range(size):
                    v_row = (source + j) * dv
                    for d in range(dv):
                        values[b * size + j, d] = widen(value_cache[v_row + d])
            for j in range(last_lane + 1, lanes + 1):
                for d in range(dv):
                    values[j, d] = _ZERO
            _scores(q, keys, scores, num_queries, dk_even, lanes)
            for m in range(num_queries):
                position = pos0 + m // group
                low = max(0, position - window + 1 - origin)
                high = min(chunk - 1, position - origin)
                if high < low:
                    for j in range(lanes):
                        scores[m, j] = _ZERO
                    continue
                top, total = _softmax(scores[m], low, high, lanes, scale, softcap, tops[m], partial)
                shrink = exp(tops[m] - top)
                tops[m] = top
                sums[m] = sums[m] * shrink + total
                for d in range(dv):
                    acc[m, d] *= shrink
            _accumulate(scores, values, acc, num_queries, first_lane // 2 * 2, last_lane, dv)
        for m in range(num_queries):
            total, shrink = sums[m], np.float32(1.0)
            h = head * group + m % group
            if p[_HAS_SINKS]:
                top = max(tops[m], sinks[h])
                shrink = exp(tops[m] - top)
                total = total * shrink + exp(sinks[h] - top)
            base = ((row0 + m // group) * num_heads + h) * dv
            inverse = shrink / total
            for d in range(dv):
                out[base + d] = narrow(acc[m, d] * inverse, out[base + d])


@njit(error_model="numpy", nogil=True)  # type: ignore[untyped-decorator]
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


def _attend_entry(element: Any) -> Any:
    def attend(address: Any) -> None:
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


def _write_entry(element: Any) -> Any:
    def write(address: Any) -> None:
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
    element = {32: np.float32, 16: np.uint16}[element_bits]
    write, attend = (_compile(entry(element)) for entry in (_write_entry, _attend_entry))
    return Kernels(write, attend)


def _compile(function: Any) -> int:
    try:
        compiled = cfunc(types.void(types.voidptr), cache=True)(function)
    except RuntimeError:  # no writable place for the cache: neither beside this file nor under the home directory
        compiled = cfunc(types.void(types.voidptr))(function)
    return int(compiled.address)
