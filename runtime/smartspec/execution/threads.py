"""How many CPU threads this process may use: what the machine grants it, never how many cores the machine has.

Two replicas that both take all of 4 cores turn a step of 25 ms into one of 350 to 570 ms: OpenMP threads wait for each
other at every operation, and one that is not scheduled stalls the rest.
"""

import math
import os
from pathlib import Path


def available_threads(root: Path = Path("/")) -> int:
    """The smaller of the CPU affinity and the cgroup quota (rounded up), at least 1; *root* is where `/sys` hangs."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def _quota(root: Path) -> float | None:
    """Cores granted by cgroup v2 or v1; None where nothing is limited."""
    groups = root / "sys/fs/cgroup"
    try:
        quota, period = (groups / "cpu.max").read_text().split()
        return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = float((groups / "cpu/cpu.cfs_quota_us").read_text())
        period_us = float((groups / "cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None
