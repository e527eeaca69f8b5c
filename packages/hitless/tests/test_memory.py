"""The memory limit is found in every layout of the cgroup directories."""

from pathlib import Path

import pytest
from hitless import available_memory

MIB = 2**20


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{256 * MIB}\n"}, 256 * MIB),
        (
            {"proc/self/cgroup": "0::/host/path/of/container\n", "sys/fs/cgroup/memory.max": f"{256 * MIB}\n"},
            256 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/memory.max": f"{128 * MIB}\n",
                "sys/fs/cgroup/pod/container/memory.max": f"{256 * MIB}\n",
            },
            128 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "9:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * MIB}\n",
            },
            512 * MIB,
        ),
    ],
    ids=["v2", "v2, path of the host", "v2, limit of the parent", "v1"],
)
def test_cgroup_limit_is_found(tmp_path: Path, files: dict[str, str], size: int) -> None:
    write_files(tmp_path, files)

    memory = available_memory(tmp_path)

    assert memory == (size, "the cgroup's memory limit")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {
            "proc/self/cgroup": "9:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    ],
    ids=["no cgroups", "no file", "v2 without limit", "v1 without limit"],
)
def test_without_cgroup_limit_machine_memory_is_returned(tmp_path: Path, files: dict[str, str]) -> None:
    write_files(tmp_path, files)

    memory = available_memory(tmp_path)

    assert memory.source == "the machine"
    assert memory.size > 256 * MIB
