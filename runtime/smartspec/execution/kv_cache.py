"""Paged keys and values of one model: per layer two tensors, addressed by block id.

Target and draft have a cache each under the *same* block ids, so that whoever owns blocks (the scheduler's pool) need
not know how many models use them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smartspec.execution.attention import LayerGeometry


@dataclass(frozen=True)
class LayerCache:
    """One layer's blocks: `keys` [num_blocks, num_kv_heads, Dk, block_size], so that a vector register spans
    positions; `values` [num_blocks, num_kv_heads, block_size, Dv], so that it spans channels."""

    keys: torch.Tensor
    values: torch.Tensor


def bytes_per_block(layers: Sequence[LayerGeometry], block_size: int) -> int:
    """Memory of one block over all *layers*."""
    return block_size * sum(layer.bytes_per_token for layer in layers)


def allocate(
    layers: Sequence[LayerGeometry], *, num_blocks: int, block_size: int, device: torch.device
) -> list[LayerCache]:
    """Zeroed caches: what was never written is finite, so that a weight of zero makes it nothing."""
    return [
        LayerCache(
            torch.zeros((num_blocks, g.num_kv_heads, g.key_dim, block_size), dtype=g.dtype, device=device),
            torch.zeros((num_blocks, g.num_kv_heads, block_size, g.value_dim), dtype=g.dtype, device=device),
        )
        for g in layers
    ]
