"""How many KV blocks fit: as told, or as measured on the device, or a refusal that says what would fit."""

from pathlib import Path

import torch

from smartspec.config import ConfigError, SchedulerConfig

SHARE_OF_FREE = {"cuda": 0.9, "cpu": 0.4}
"""Of the memory that is free once the weights are in. A CPU's is shared with whoever else lives there."""
CPU_CEILING_BYTES = 4 << 30
"""Unasked, no more than this is taken of a CPU's memory."""


def choose_num_blocks(config: SchedulerConfig, *, block_bytes: int, max_model_len: int, device: torch.device) -> int:
    """KV blocks to allocate, each *block_bytes* over all models.

    Raises ConfigError when not even one sequence of *max_model_len* tokens would fit.
    """
    free = free_bytes(device)
    if config.num_blocks is not None:
        num, source = config.num_blocks, f"num_blocks {config.num_blocks}"
    elif config.kv_cache_memory_bytes is not None:
        num, source = config.kv_cache_memory_bytes // block_bytes, f"kv_cache_memory {config.kv_cache_memory_bytes}"
    else:
        budget = int(free * SHARE_OF_FREE.get(device.type, 0.9))
        budget = min(budget, CPU_CEILING_BYTES) if device.type == "cpu" else budget
        # Never more than every sequence at its longest could use.
        most = config.max_num_seqs * -(-max_model_len // config.block_size)
        num, source = min(budget // block_bytes, most), f"the {free / 2**30:.1f} GiB that are free"
    needed = -(-max_model_len // config.block_size)
    if num * block_bytes > free:
        raise ConfigError(
            f"the KV cache of {num} blocks needs {num * block_bytes / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are "
            f"free: num_blocks can be at most {free // block_bytes}"
        )
    if num < needed:
        raise ConfigError(
            f"a sequence of max_model_len {max_model_len} tokens needs {needed} KV blocks "
            f"({needed * block_bytes / 2**20:.0f} MiB), but {source} gives {num}: max_model_len can be at most "
            f"{num * config.block_size}"
        )
    return num


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Memory that can still be had on *device*: for a CPU the smaller of the machine's and the cgroup's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_machine_bytes(root), _cgroup_bytes(root))


def _machine_bytes(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def _cgroup_bytes(root: Path) -> int:
    groups = root / "sys/fs/cgroup"
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int((groups / limit).read_text()) - int((groups / usage).read_text()))
        except (OSError, ValueError):  # no such version, or "max": no limit
            continue
    return 1 << 62
