"""The process limit is found in both versions of cgroups."""

from pathlib import Path

import pytest
from hitless import available_processes


@pytest.mark.parametrize(
    ("membership", "files", "number"),
    [
        ("0::/", {"sys/fs/cgroup/pids.max": "256\n"}, 256),
        ("0::/a/b", {"sys/fs/cgroup/a/pids.max": "64\n", "sys/fs/cgroup/a/b/pids.max": "256\n"}, 64),
        ("0::/", {"sys/fs/cgroup/pids.max": "max\n"}, None),
        ("8:pids:/docker/1", {"sys/fs/cgroup/pids/docker/1/pids.max": "100\n"}, 100),
        ("0::/", {}, None),
    ],
    ids=["v2", "v2, limit of the parent", "v2, no limit", "v1", "no file"],
)
def test_limit_is_found(tmp_path: Path, membership: str, files: dict[str, str], number: int | None) -> None:
    for name, text in {"proc/self/cgroup": membership, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert available_processes(tmp_path) == number
