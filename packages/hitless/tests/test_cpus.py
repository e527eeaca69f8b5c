"""The number of CPUs is read correctly from copies of the files that the kernel provides in a container."""

import os
from pathlib import Path

import pytest
from hitless.cpus import CPUs, available_cpus

MACHINE = os.cpu_count() or 1
AVAILABLE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else MACHINE


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_cgroups_affinity_and_machine_count(tmp_path: Path) -> None:
    cpus = available_cpus(tmp_path)

    assert cpus.number == AVAILABLE
    assert cpus.source in {"the machine", "the CPU affinity"}


def test_affinity_smaller_than_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    assert available_cpus(tmp_path) == CPUs(1, "the CPU affinity")


def test_without_affinity_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS

    assert available_cpus(tmp_path) == CPUs(MACHINE, "the machine")


@pytest.mark.parametrize(("quota", "number"), [("100000", 1), ("10000", 1), ("150000", min(2, AVAILABLE))])
def test_cgroup_v2_quota_counts_rounded_up(tmp_path: Path, quota: str, number: int) -> None:
    root = write_files(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})

    cpus = available_cpus(root)

    assert cpus == (number, "the cgroup's CPU quota")


def test_cgroup_v1_quota_counts(tmp_path: Path) -> None:
    root = write_files(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )

    cpus = available_cpus(root)

    assert cpus == (1, "the cgroup's CPU quota")


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "99900000 100000\n"},
    ],
    ids=["v2 without a quota", "v1 without a quota", "a quota larger than the machine"],
)
def test_quota_that_limits_nothing_is_not_reported(tmp_path: Path, files: dict[str, str]) -> None:
    cpus = available_cpus(write_files(tmp_path, files))

    assert cpus.number == AVAILABLE
    assert cpus.source != "the cgroup's CPU quota"


def test_quota_of_a_parent_cgroup_counts(tmp_path: Path) -> None:
    root = write_files(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/app.service\n",
            "sys/fs/cgroup/system.slice/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/system.slice/app.service/cpu.max": "max 100000\n",
        },
    )

    cpus = available_cpus(root)

    assert cpus == (1, "the cgroup's CPU quota")


def test_quota_is_found_if_the_container_sees_the_path_of_the_host(tmp_path: Path) -> None:
    root = write_files(
        tmp_path,
        {
            "proc/self/cgroup": "1:cpu:/docker/0123abcd\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )

    cpus = available_cpus(root)

    assert cpus == (1, "the cgroup's CPU quota")
