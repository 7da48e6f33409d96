"""How many processors this process may use, as the system tells."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path


def usable_cores() -> int:
    """The processors that this process may use: its affinity, bounded by its cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = quota_cpus(Path("/"))
    # A fraction of a processor does not carry a thread: the team would wait for it.
    return count if quota is None else max(1, min(count, int(quota)))


def quota_cpus(root: Path) -> float | None:
    """The smallest processor quota of this process's control groups; None without one.

    Args:
        root: the file system's root.
    """
    quotas = [*_quotas_v1(root), *_quotas_v2(root)]
    return min(quotas, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The group's path, then its parents': a quota bounds everything below it.

    In a container the path may be the host's, whose groups are not there; the top is.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            yield from (group, *group.parents)


def _quotas_v2(root: Path) -> Iterator[float]:
    for group in _groups(root, ""):
        for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
            match = re.match(r"(\d+) (\d+)", _read(root / mount / group / "cpu.max"))
            if match:
                yield int(match[1]) / int(match[2])


def _quotas_v1(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        for mount in ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"):
            quota = _read(root / mount / group / "cpu.cfs_quota_us")
            period = _read(root / mount / group / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit():  # -1 means none
                yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
