"""A container's limits, read from either version of cgroups."""

import os
from pathlib import Path

import pytest
import torch

from smartspec.config import ConfigError
from smartspec.execution import cgroup, threads


def write(root: Path, files: dict[str, str]) -> Path:
    """A made-up /proc and /sys."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {
    "proc/self/cgroup": "0::/kubepods/pod1\n",
    "sys/fs/cgroup/kubepods/cpu.max": "400000 100000\n",
    "sys/fs/cgroup/kubepods/pod1/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/kubepods/memory.max": "max\n",
    "sys/fs/cgroup/kubepods/pod1/memory.max": "1000\n",
    "sys/fs/cgroup/kubepods/pod1/memory.current": "700\n",
    "sys/fs/cgroup/kubepods/pod1/memory.stat": "anon 5\ninactive_file 100\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu,cpuacct:/pod\n4:memory:/pod\n0::/\n",
    "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "250000\n",
    "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
    "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "2000\n",
    "sys/fs/cgroup/memory/pod/memory.usage_in_bytes": "500\n",
}
CONTAINER_V2 = {
    "proc/self/cgroup": "0::/../../outside\n",
    "sys/fs/cgroup/cpu.max": "50000 100000\n",
    "sys/fs/cgroup/memory.max": "300\n",
    "sys/fs/cgroup/memory.current": "100\n",
}
UNLIMITED = {
    "proc/self/cgroup": "5:cpu:/\n4:memory:/\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
}


@pytest.mark.parametrize(
    ("files", "cpus", "memory"),
    [(V2, 1.5, 400), (V1, 2.5, 1500), (CONTAINER_V2, 0.5, 200), (UNLIMITED, None, None), ({}, None, None)],
    ids=["v2", "v1", "inside a container", "unlimited", "no cgroups"],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, files: dict[str, str], cpus: float | None, memory: int | None
) -> None:
    """Of this group and those above it; file cache is free memory; no limit is None."""
    root = write(tmp_path, files)
    assert cgroup.cpu_quota(root) == cpus
    assert cgroup.free_memory(root) == memory


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.2, 2), (64.0, 3), (None, 3)])
def test_threads_are_the_cpus_that_are_ours(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    """Affinity, bounded by the quota rounded up; never the machine's count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 9})
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    assert threads.available_cpus() == expected


def test_a_number_of_threads_is_taken_as_given() -> None:
    """And set; below one it is refused."""
    before = torch.get_num_threads()
    try:
        assert threads.set_threads(2) == torch.get_num_threads() == 2
        with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
            threads.set_threads(0)
    finally:
        torch.set_num_threads(before)
