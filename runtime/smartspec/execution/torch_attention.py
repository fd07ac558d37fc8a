"""Paged attention in plain torch operations, request by request: for devices without a compiled kernel, and the
reference that the kernel is tested against. Correct, not fast, and not bit-invariant."""

from collections.abc import Sequence

import torch

from smartspec.execution.attention import LayerGeometry
from smartspec.execution.kv_cache import LayerCache
from smartspec.execution.ragged import RaggedBatch


class TorchAttention:
    """Attention of all layers over *caches*, one call per layer and step."""

    invariant = False

    def __init__(self, layers: Sequence[LayerGeometry], caches: Sequence[LayerCache]) -> None:
        self._layers, self._caches = layers, caches
        self._tiles: list[tuple[int, int, int, torch.Tensor]] = []
        self._slots = self._offsets = torch.empty(0, dtype=torch.int64)
        self._num_rows = 0

    def begin(self, batch: RaggedBatch) -> None:
        """Take a step's tiles and block tables."""
        device, size = self._caches[0].values.device, self._caches[0].values.shape[2]
        tables = torch.from_numpy(batch.block_tables)
        positions = torch.from_numpy(batch.positions)[: batch.num_rows]
        slots = torch.empty_like(positions)
        self._tiles = []
        for row, count, start, table in batch.tiles.tolist():
            blocks = tables[table : table + (start + count - 1) // size + 1]
            slots[row : row + count] = blocks[positions[row : row + count] // size]
            self._tiles.append((row, count, start, blocks.to(device)))
        self._slots, self._offsets = slots.to(device), (positions % size).to(device)
        self._num_rows = batch.num_rows

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store the rows' keys and values, then attend: [1, heads, T, D] in, [1, T, num_heads, Dv] out; rows without
        a tile are zero."""
        geometry, cache = self._layers[layer], self._caches[layer]
        cache.keys[self._slots, :, :, self._offsets] = key[0, :, : self._num_rows].transpose(0, 1)
        cache.values[self._slots, :, self._offsets] = value[0, :, : self._num_rows].transpose(0, 1)
        out = query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))
        for row, count, start, blocks in self._tiles:
            keys = cache.keys[blocks].permute(1, 2, 0, 3).flatten(2)
            values = cache.values[blocks].permute(1, 0, 2, 3).flatten(1, 2)
            rows = query[0, :, row : row + count]
            out[0, row : row + count] = _attend(rows, keys, values, geometry, start).transpose(0, 1)
        return out


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, geometry: LayerGeometry, start: int
) -> torch.Tensor:
    """Queries [H, T, Dk] from position *start* on, keys [Hkv, Dk, N], values [Hkv, N, Dv]; output [H, T, Dv]."""
    heads, count, _ = query.shape
    group = heads // geometry.num_kv_heads
    grouped = query.float().reshape(geometry.num_kv_heads, group * count, -1)
    scores = (grouped @ keys.float() * geometry.scale).view(heads, count, -1)
    if geometry.softcap:
        scores = geometry.softcap * torch.tanh(scores / geometry.softcap)
    position = torch.arange(start, start + count, device=query.device)[:, None]
    other = torch.arange(scores.shape[2], device=query.device)
    seen = other <= position
    if geometry.window is not None:
        seen &= other > position - geometry.window
    scores = scores.masked_fill(~seen, float("-inf"))
    if geometry.sinks is not None:
        sinks = geometry.sinks.to(scores)[:, None, None].expand(-1, count, 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    weights = weights.view(geometry.num_kv_heads, group * count, -1)
    out = (weights @ values.float()).view(heads, count, -1)
    return out.to(query.dtype)
