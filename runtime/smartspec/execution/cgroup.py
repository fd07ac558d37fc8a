"""What the container that this process runs in may use: CPU quota and memory, from cgroup v2 or v1.

The machine's own numbers say nothing of it: a pod with two CPUs on a 64-core node sees 64 cores.
"""

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a huge number."""


def cpu_quota(root: Path = _ROOT) -> float | None:
    """CPUs' worth of time that the tightest cgroup above this process grants, or None without a quota."""
    quotas = []
    for folder in _folders(root, "cpu"):
        if (text := _read(folder / "cpu.max")) is not None:
            quota, _, period = text.partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def free_memory(root: Path = _ROOT) -> int | None:
    """Bytes left under the tightest memory limit above this process, or None without a limit.

    What the kernel only caches of files is counted as free: it gives that up first.
    """
    left = []
    for folder in _folders(root, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or ""
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or ""
        if limit.isdigit() and used.isdigit() and int(limit) < _UNLIMITED:
            left.append(max(0, int(limit) - int(used) + _cached(folder)))
    return min(left, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup and those above it. In a container the path may lie outside what is mounted: then only the
    mount itself is there, and it is the container's own."""
    mounted = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            base = mounted
        elif controller in controllers.split(","):
            base = mounted / controllers if (mounted / controllers).is_dir() else mounted / controller
        else:
            continue
        folder = base / path.lstrip("/")
        while folder != base:
            yield folder
            folder = folder.parent
        yield base


def _cached(folder: Path) -> int:
    """Bytes of inactive file cache."""
    fields = dict(line.split(maxsplit=1) for line in (_read(folder / "memory.stat") or "").splitlines() if " " in line)
    return int(fields.get("total_inactive_file") or fields.get("inactive_file") or 0)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
