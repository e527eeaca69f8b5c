"""The default numbers of workers and of concurrent hashes suit the available CPUs and memory."""

import pytest
from hitless import CPUs, Memory

from app.capacity import MIB, check_process_limit, plan_capacity
from tests.conftest import make_settings

LIMIT = "the cgroup's memory limit"


@pytest.mark.parametrize(
    ("cpus", "mebibytes", "workers", "hashes"),
    [
        (1, 128, 1, 1),
        (1, 256, 2, 1),
        (2, 256, 2, 1),
        (1, 512, 3, 2),
        (2, 512, 5, 1),
        (2, 1024, 5, 2),
        (64, 4096, 48, 1),
    ],
)
def test_numbers_fit_into_cpus_and_memory(cpus: int, mebibytes: int, workers: int, hashes: int) -> None:
    settings = make_settings(argon2_memory_kib=19_456)

    capacity = plan_capacity(settings, CPUs(cpus, "the machine"), Memory(mebibytes * MIB, LIMIT))

    assert (capacity.workers, capacity.hashes) == (workers, hashes)
    assert bool(capacity.warning) == (mebibytes == 128)
    assert (capacity.needed <= mebibytes * MIB) == (mebibytes != 128)


def test_settings_override_the_plan_and_warn_if_they_do_not_fit() -> None:
    settings = make_settings(argon2_memory_kib=65_536, web_concurrency=5, argon2_concurrency=2)

    capacity = plan_capacity(settings, CPUs(2, "the machine"), Memory(512 * MIB, LIMIT))

    assert (capacity.workers, capacity.hashes) == (5, 2)
    assert capacity.description == "5 workers (WEB_CONCURRENCY), at most 1024 of 512 MiB of memory"
    assert capacity.warning == (
        "5 workers may need 1024 of 512 MiB of memory: set WEB_CONCURRENCY to at most 3 and ARGON2_CONCURRENCY to 1, or"
        " raise the limit"
    )


@pytest.mark.parametrize(
    ("mebibytes", "description"),
    [
        (1024, "5 workers (2 x 2 CPUs + 1, by the machine), at most 574 of 1024 MiB of memory"),
        (256, "2 workers (by the cgroup's memory limit), at most 230 of 256 MiB of memory"),
    ],
)
def test_description_names_the_limiting_resource(mebibytes: int, description: str) -> None:
    settings = make_settings(argon2_memory_kib=19_456)

    capacity = plan_capacity(settings, CPUs(2, "the machine"), Memory(mebibytes * MIB, LIMIT))

    assert capacity.description == description


@pytest.mark.parametrize(
    ("limit", "warning"),
    [
        (None, ""),
        (73, ""),
        (72, "5 workers may need 73 processes and threads, but the limit is 72: raise it (`pids`)"),
    ],
)
def test_too_small_limit_on_processes_is_a_warning(limit: int | None, warning: str) -> None:
    assert check_process_limit(5, limit) == warning
