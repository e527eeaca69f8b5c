"""How many CPUs a container may use, read from file trees like those the kernel shows."""

import os
from pathlib import Path

import pytest
from hitless.cpus import available_cpus

MACHINE = len(os.sched_getaffinity(0))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_cgroups_the_affinity_or_the_machine_counts(tmp_path: Path) -> None:
    cpus = available_cpus(tmp_path)

    assert cpus.number == MACHINE
    assert cpus.source in {"the machine", "the CPU affinity"}


@pytest.mark.parametrize(("quota", "number"), [("100000", 1), ("10000", 1), ("150000", min(2, MACHINE))])
def test_a_quota_of_cgroup_v2_counts_and_a_fraction_is_rounded_up(tmp_path: Path, quota: str, number: int) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})

    cpus = available_cpus(root)

    assert cpus == (number, "the cgroup's CPU quota")


def test_a_quota_of_cgroup_v1_counts(tmp_path: Path) -> None:
    root = tree(
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
    ids=["v2 without a quota", "v1 without a quota", "a quota wider than the machine"],
)
def test_a_quota_that_limits_nothing_is_not_named(tmp_path: Path, files: dict[str, str]) -> None:
    cpus = available_cpus(tree(tmp_path, files))

    assert cpus.number == MACHINE
    assert cpus.source != "the cgroup's CPU quota"


def test_the_quota_of_a_group_further_up_holds_too(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/app.service\n",
            "sys/fs/cgroup/system.slice/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/system.slice/app.service/cpu.max": "max 100000\n",
        },
    )

    cpus = available_cpus(root)

    assert cpus == (1, "the cgroup's CPU quota")


def test_a_container_that_sees_the_hosts_path_finds_its_own_quota(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "1:cpu:/docker/0123abcd\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )

    cpus = available_cpus(root)

    assert cpus == (1, "the cgroup's CPU quota")
