"""How much of the KV cache fits: measured or told, and a refusal that says what would."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from smartspec.config import ConfigError, SchedulerConfig
from smartspec.execution import cgroup

log = logging.getLogger(__name__)

CPU_SHARE = 0.5
"""Part of the free memory a CPU replica takes at most: others on the machine live from the rest."""

CUDA_SHARE = 0.85
"""Part of the free device memory: what a step computes with needs the rest."""


@dataclass(frozen=True)
class CacheSize:
    """Blocks to allocate, and the longest request that they can hold."""

    num_blocks: int
    max_model_len: int


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated on *device* now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limit = cgroup.free_memory()
    available = _available()
    return min(x for x in (limit, available, 1 << 50) if x is not None)


def size_cache(
    config: SchedulerConfig,
    *,
    bytes_per_block: int,
    device: torch.device,
    model_len: int,
    requested_len: int | None = None,
) -> CacheSize:
    """Blocks for the cache of all models together, of *bytes_per_block* each.

    As told (`num_blocks`, `kv_cache_memory_bytes`), else as many as a full batch of the longest requests can use, as
    far as free memory goes. Requests are bounded by *requested_len*, else by *model_len*, the model's own limit, and,
    unless the user insisted on a length, by what fits. Raises ConfigError, naming what would fit.
    """
    max_model_len = requested_len or model_len
    blocks_each = -(-max_model_len // config.block_size)
    wanted = blocks_each * config.max_num_seqs
    free = free_memory(device)
    if config.num_blocks is not None:
        num_blocks = config.num_blocks
        if num_blocks * bytes_per_block > free:
            raise ConfigError(
                f"num_blocks {num_blocks} need {_size(num_blocks * bytes_per_block)}, but only {_size(free)} are free "
                f"on {device}: at most {free // bytes_per_block} blocks fit"
            )
    elif config.kv_cache_memory_bytes is not None:
        num_blocks = config.kv_cache_memory_bytes // bytes_per_block
        if config.kv_cache_memory_bytes > free:
            raise ConfigError(
                f"kv_cache_memory {_size(config.kv_cache_memory_bytes)} is more than the {_size(free)} free on {device}"
            )
    else:
        share = CPU_SHARE if device.type == "cpu" else CUDA_SHARE
        num_blocks = min(wanted, int(free * share) // bytes_per_block)
    if num_blocks < 1:
        raise ConfigError(
            f"no block of the KV cache fits on {device}: one of {config.block_size} tokens needs "
            f"{_size(bytes_per_block)}"
        )
    capacity = num_blocks * config.block_size
    if capacity < max_model_len and requested_len is not None:
        raise ConfigError(
            f"max_model_len {requested_len} needs {blocks_each} blocks ({_size(blocks_each * bytes_per_block)}), but "
            f"the KV cache has {num_blocks}: at most {capacity} tokens fit"
        )
    if capacity < max_model_len:
        log.warning("event=max_model_len_reduced model=%d cache=%d", max_model_len, capacity)
    return CacheSize(num_blocks, min(max_model_len, capacity))


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB" if num_bytes >= 1 << 28 else f"{num_bytes / (1 << 20):.1f} MiB"
