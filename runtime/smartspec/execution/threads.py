"""How many threads a CPU replica computes with.

Threads beyond the CPUs that are really ours are worse than none: OpenMP threads wait by spinning, and two replicas with
a machine's worth of threads each slow one another down tenfold.
"""

import math
import os

import torch

from smartspec.config import ConfigError
from smartspec.execution import cgroup


def available_cpus() -> int:
    """CPUs this process may use: affinity, bounded by the cgroup's quota (a part of a CPU counts as one)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup.cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def set_threads(requested: int | None) -> int:
    """Compute with *requested* threads, or as many as there are CPUs for us; the number is returned.

    Raises ConfigError for a number below one.
    """
    if requested is not None and requested < 1:
        raise ConfigError(f"threads must be at least 1, got {requested}")
    count = requested or available_cpus()
    torch.set_num_threads(count)
    return count
