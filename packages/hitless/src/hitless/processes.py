"""Find how many processes and threads the container may have."""

from pathlib import Path

from hitless.cgroups import read_limits


def available_processes(root: Path = Path("/")) -> int | None:
    """Return the lowest cgroup limit on the total number of processes and threads, or None if there is no limit.

    Args:
        root: The directory that contains `proc` and `sys`.
    """
    return min(read_limits(root, "pids", v1=_read, v2=_read), default=None)


def _read(directory: Path) -> int | None:
    """Return the limit from `pids.max`, or None if the file contains `max` (no limit) or does not exist."""
    file = directory / "pids.max"
    limit = file.read_text().strip() if file.is_file() else "max"
    return None if limit == "max" else int(limit)
