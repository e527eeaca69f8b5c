"""The limits of the control groups that this process belongs to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

Limit = TypeVar("Limit", int, float)


def read_limits(
    root: Path, controller: str, *, v1: Callable[[Path], Limit | None], v2: Callable[[Path], Limit | None]
) -> Iterator[Limit]:
    """Yield the limits of this process's control group and of all its ancestors, each of which applies.

    In a container, /proc/self/cgroup may hold the path as the host sees it, of which only the last part is mounted.
    Walking up finds the limit in both cases.

    Args:
        root: The directory that contains `proc` and `sys`.
        controller: The controller of version 1, such as `cpu`.
        v1: Reads the limit from a directory of version 1, or returns None.
        v2: Reads the limit from a directory of version 2, or returns None.
    """
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, read = root / "sys/fs/cgroup", v2
        elif controller in controllers.split(","):
            mount, read = root / "sys/fs/cgroup" / controller, v1
        else:
            continue
        group: Path = mount / path.lstrip("/")
        for directory in (group, *group.parents):
            if directory.is_relative_to(mount) and (limit := read(directory)):
                yield limit
