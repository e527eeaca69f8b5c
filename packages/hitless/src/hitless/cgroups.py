"""Read the resource limits of the control groups (cgroups) that this process belongs to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

Limit = TypeVar("Limit", int, float)


def read_limits(
    root: Path, controller: str, *, v1: Callable[[Path], Limit | None], v2: Callable[[Path], Limit | None]
) -> Iterator[Limit]:
    """Yield the limits of this process's control group and of all its ancestors. The lowest limit is effective.

    In a container, /proc/self/cgroup may contain the group's path on the host. That path does not exist in the
    container, where the group itself is the root of the cgroup file system. This function therefore reads each
    directory from the path up to the root, and skips those that do not exist.

    Args:
        root: The directory that contains `proc` and `sys`.
        controller: The controller's name in cgroup v1, for example `cpu`.
        v1: Returns the limit from a cgroup v1 directory, or None if there is no limit.
        v2: Returns the limit from a cgroup v2 directory, or None if there is no limit.
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
