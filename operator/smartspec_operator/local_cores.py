"""How many CPU cores this process may use: what its affinity and its cgroup's quota leave of the machine."""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_cores(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """At least 1. A quota of 1.5 cores counts as 2: half a core must not idle."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(ceil(quota) for quota in _quotas(cgroups, membership))]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The quotas, in cores, of this process's cgroup and of every one above it (cgroup v2, then v1)."""
    for folder in _folders(cgroups, membership):
        quota, period = _numbers(folder / "cpu.max")
        if quota is None:
            (quota,), (period,) = _numbers(folder / "cpu.cfs_quota_us", 1), _numbers(folder / "cpu.cfs_period_us", 1)
        if quota is not None and period and quota > 0:
            yield quota / period


def _folders(cgroups: Path, membership: Path) -> Iterator[Path]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        folder = root / path.strip("/")
        while True:
            yield folder
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent


def _numbers(path: Path, count: int = 2) -> tuple[float | None, ...]:
    """The numbers in a file; None for each where there is no file or no limit."""
    try:
        return tuple(float(word) for word in path.read_text().split()[:count])
    except (OSError, ValueError):  # "max" is no number: there is no limit
        return (None,) * count
