"""The number of CPUs that this process may use: the container's quota counts, not only the machine."""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple


class CPUs(NamedTuple):
    """A number of CPUs and, for the log, what limits it."""

    number: int
    source: str


def available_cpus(root: Path = Path("/")) -> CPUs:
    """Return the smallest of the cgroup's CPU quota (rounded up), the CPU affinity and the machine's CPUs.

    Python itself sees the affinity (`docker run --cpuset-cpus`), but not the quota (`docker run --cpus`, or a CPU limit
    in Kubernetes).

    Args:
        root: The directory that contains `proc` and `sys`.
    """
    quotas = [CPUs(ceil(quota), "the cgroup's CPU quota") for quota in _quotas(root)]
    machine = CPUs(os.cpu_count() or 1, "the machine")
    affinity = CPUs(_affinity() or machine.number, "the CPU affinity")
    # `min` returns the first of equals, so an affinity that excludes no CPU is not named.
    return min([*quotas, machine, affinity], key=lambda cpus: cpus.number)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0  # not on macOS


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas of this process's cgroup and of all its ancestors, each of which applies.

    In a container, /proc/self/cgroup may hold the path as the host sees it, of which only the last part is mounted.
    Walking up finds the quota in both cases.
    """
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (quota := read(folder)):
                yield quota


def _quota_v2(folder: Path) -> float | None:
    """Read `cpu.max`, such as `max 100000` or `150000 100000`: microseconds of CPU time per period, and the period."""
    file = folder / "cpu.max"
    if not file.is_file():
        return None
    quota, period = file.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    """Read the quota and the period of version 1, one file each; -1 means no quota."""
    quota, period = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    if not (quota.is_file() and period.is_file()) or int(quota.read_text()) < 0:
        return None
    return int(quota.read_text()) / int(period.read_text())
