"""Paged keys and values of one model: per layer two tensors, addressed by block id.

Target and draft have a cache each under the *same* block ids, so that whoever owns blocks (the scheduler's pool) need
not know how many models use them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
            _zeros((num_blocks, g.num_kv_heads, g.key_dim, block_size), g.dtype, device),
            _zeros((num_blocks, g.num_kv_heads, block_size, g.value_dim), g.dtype, device),
        )
        for g in layers
    ]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks the kernel for zero pages, which cost nothing until they are written; torch would write them all now.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
