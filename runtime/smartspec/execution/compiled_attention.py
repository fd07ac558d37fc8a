"""Paged attention on the CPU by the compiled kernel: fills its parameter blocks and runs it on torch's threads."""

from collections.abc import Sequence

import numpy as np
import torch

from smartspec.execution import openmp
from smartspec.execution.attention import LayerGeometry
from smartspec.execution.attention_kernel import FIELDS, kernels
from smartspec.execution.kv_cache import LayerCache
from smartspec.execution.ragged import RaggedBatch

_INDEX = {name: i for i, name in enumerate(FIELDS)}
_NEXT, _TILES, _TABLES, _NUM_TILES = (_INDEX[n] for n in ("next_item", "tiles", "block_tables", "num_tiles"))
_TOGETHER = _INDEX["heads_per_item"]
_FIRST_POINTER = _INDEX["query"]
_STRIDES = slice(_INDEX["query_row"], _INDEX["value_head"] + 1)
_POINTERS = slice(_FIRST_POINTER, _INDEX["out"] + 1)
_WORK_PER_THREAD = 1 << 17
"""Multiply-adds of a layer for which another thread is worth its waking: about ten microseconds."""
MOST_QUERIES = 64
"""Queries whose scores, sums and results an item holds: with them it stays within a core's first caches."""
ITEMS_PER_THREAD = 4
"""So many times the longest item fits into a thread's share of the work: the last one does not keep all waiting."""


def heads_together(batch: RaggedBatch, num_heads: int, num_kv_heads: int, num_threads: int) -> int:
    """How many KV heads of a tile one thread takes at once.

    The heads of a block lie side by side: read one after the other they are a stream, head by head they are scattered
    pieces, and a decode step's attention takes a third longer.
    """
    rows = batch.tiles[:, 1]
    most = MOST_QUERIES * num_kv_heads // (int(rows.max()) * num_heads)
    if num_threads > 1:
        work = rows * (rows + batch.tiles[:, 2])
        most = min(most, int(work.sum()) * num_kv_heads // (int(work.max()) * ITEMS_PER_THREAD * num_threads))
    return max(count for count in range(1, num_kv_heads + 1) if count <= max(1, most) and num_kv_heads % count == 0)


class CompiledAttention:
    """Attention of all layers over *caches*, one call per layer and step. Bit-invariant by row: see the kernel."""

    invariant = True

    def __init__(self, layers: Sequence[LayerGeometry], caches: Sequence[LayerCache]) -> None:
        (self.element_bits,) = {layer.dtype.itemsize * 8 for layer in layers}
        self.kernels = kernels(self.element_bits)
        self._layers, self._caches = layers, caches
        self._floats = [np.array([g.scale, g.softcap], dtype=np.float32) for g in layers]
        self._sinks = [torch.zeros(g.num_heads) if g.sinks is None else g.sinks for g in layers]
        self.parameter_blocks = [self._block(i) for i in range(len(layers))]
        self._kinds = {(g.num_heads, g.num_kv_heads) for g in layers}
        self.num_threads = 1

    def _block(self, layer: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        geometry, cache = self._layers[layer], self._caches[layer]
        known = {
            "num_heads": geometry.num_heads,
            "num_kv_heads": geometry.num_kv_heads,
            "key_dim": geometry.key_dim,
            "value_dim": geometry.value_dim,
            "block_size": cache.values.shape[2],
            "window": geometry.window or 1 << 60,
            "has_sinks": int(geometry.sinks is not None),
            "key_cache": cache.keys.data_ptr(),
            "value_cache": cache.values.data_ptr(),
            "sinks": self._sinks[layer].data_ptr(),
            "floats": self._floats[layer].ctypes.data,
        }
        return np.array([known.get(name, 0) for name in FIELDS], dtype=np.int64)

    def begin(self, batch: RaggedBatch) -> None:
        """Take a step's tiles and block tables."""
        self._batch = batch  # the kernel holds addresses into it
        geometry = self._layers[0]
        work = batch.context_tokens * geometry.num_heads * (geometry.key_dim + geometry.value_dim)
        self.num_threads = max(1, min(torch.get_num_threads(), work // _WORK_PER_THREAD))
        together = {heads: heads_together(batch, *heads, self.num_threads) for heads in self._kinds}
        for block, layer in zip(self.parameter_blocks, self._layers, strict=True):
            block[_TOGETHER] = together[layer.num_heads, layer.num_kv_heads]
            block[_NUM_TILES] = len(batch.tiles)
            block[_TILES] = batch.tiles.ctypes.data
            block[_TABLES] = batch.block_tables.ctypes.data

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store the rows' keys and values, then attend: [1, heads, T, D] in, [1, T, num_heads, Dv] out; rows without
        a tile are zero."""
        query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
        out = query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))
        block = self.parameter_blocks[layer]
        block[_POINTERS] = (query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr())
        block[_STRIDES] = (*query.stride()[2:0:-1], *key.stride()[2:0:-1], *value.stride()[2:0:-1])
        address = block.ctypes.data
        block[_NEXT] = 0
        openmp.run(self.kernels.write, address, self.num_threads)
        block[_NEXT] = 0
        openmp.run(self.kernels.attend, address, self.num_threads)
        return out
