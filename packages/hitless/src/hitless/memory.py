"""Find how much memory this process and its children may use, given the machine and the container's limit."""

import os
from pathlib import Path
from typing import NamedTuple

from hitless.cgroups import read_limits


class Memory(NamedTuple):
    """The size of the usable memory in bytes and, for log messages, a description of what limits this size."""

    size: int
    source: str


def available_memory(root: Path = Path("/")) -> Memory:
    """Return the lower of the cgroup's memory limit and the machine's memory.

    Args:
        root: The directory that contains `proc` and `sys`.
    """
    limits = [
        Memory(limit, "the cgroup's memory limit") for limit in read_limits(root, "memory", v1=_read_v1, v2=_read_v2)
    ]
    machine = Memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine")
    # If a limit equals the machine's memory, the machine is named as the source, because `min` returns the first of
    # equal values. In cgroup v1, "no limit" is a number larger than any machine's memory, so it is never the minimum.
    return min([machine, *limits], key=lambda memory: memory.size)


def _read_v2(directory: Path) -> int | None:
    """Return the limit in bytes from `memory.max` of cgroup v2, or None if the file contains `max` (no limit)."""
    file = directory / "memory.max"
    if not file.is_file():
        return None
    limit = file.read_text().strip()
    return None if limit == "max" else int(limit)


def _read_v1(directory: Path) -> int | None:
    file = directory / "memory.limit_in_bytes"
    return int(file.read_text()) if file.is_file() else None
