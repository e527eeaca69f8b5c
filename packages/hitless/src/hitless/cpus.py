"""Find the number of CPUs that this process may use, given the machine and the container's quota."""

import os
from math import ceil
from pathlib import Path
from typing import NamedTuple

from hitless.cgroups import read_limits


class CPUs(NamedTuple):
    """The number of usable CPUs and, for log messages, a description of what limits this number."""

    number: int
    source: str


def available_cpus(root: Path = Path("/")) -> CPUs:
    """Return the number of CPUs that this process may use, and what limits it.

    The number is the lowest of the cgroup's CPU quota (rounded up), the number of CPUs in the affinity mask, and the
    number of CPUs in the machine.

    Python's own functions respect the affinity (`docker run --cpuset-cpus`), but not the quota (`docker run --cpus`, or
    a CPU limit in Kubernetes).

    Args:
        root: The directory that contains `proc` and `sys`.
    """
    quotas = read_limits(root, "cpu", v1=_quota_v1, v2=_quota_v2)
    limits = [CPUs(ceil(quota), "the cgroup's CPU quota") for quota in quotas]
    machine = CPUs(os.cpu_count() or 1, "the machine")
    affinity = CPUs(_affinity() or machine.number, "the CPU affinity")
    # If several limits are equal, `min` returns the first. The affinity comes last, so it is reported only if it is
    # lower than all others.
    return min([*limits, machine, affinity], key=lambda cpus: cpus.number)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0  # not available on macOS


def _quota_v2(directory: Path) -> float | None:
    """Return the CPU quota from `cpu.max` as a number of CPUs, or None if it is unlimited.

    The file contains the quota and the period in microseconds, for example `150000 100000` or `max 100000`.
    """
    file = directory / "cpu.max"
    if not file.is_file():
        return None
    quota, period = file.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(directory: Path) -> float | None:
    """Return the CPU quota as a number of CPUs, or None if it is unlimited.

    cgroup v1 has one file for the quota and one for the period, in microseconds. A quota of -1 means unlimited.
    """
    quota, period = directory / "cpu.cfs_quota_us", directory / "cpu.cfs_period_us"
    if not (quota.is_file() and period.is_file()) or int(quota.read_text()) < 0:
        return None
    return int(quota.read_text()) / int(period.read_text())
