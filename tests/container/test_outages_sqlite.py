"""If SQLite's disk is full or its file is locked, writes return 503 until the problem is solved, and reads succeed."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from processes import TIMEOUT, until

from tests.container.engine import Container
from tests.container.load import Report, continue_load, load
from tests.container.service import api, get, make_targets, run_service
from tests.container.test_outages import MAX_RESPONSE_SECONDS, UNAVAILABLE

FILL_DISK = "dd if=/dev/zero of=/data/ballast bs=4096; true"
LOCK_FILE = """
import sqlite3, time
sqlite3.connect("/data/app.db", isolation_level=None).execute("BEGIN IMMEDIATE")
time.sleep(8)
"""


@pytest.fixture
def service(image: str) -> Iterator[Container]:
    """The service with its database on a 4 MiB disk.

    The connection pool is so large that reads get a connection even if all of the load's writes wait in one worker.
    """
    disk = "--tmpfs=/data:size=4m,uid=10001,gid=0,mode=0770"
    with run_service(image, disk, MAX_REQUESTS="0", DATABASE_POOL_SIZE="10") as container:
        yield container


@contextmanager
def outage(service: Container) -> Iterator[Report]:
    """Put the service under load. After the `with` block, wait until writes succeed again, then check all responses."""
    _, read = make_targets(service)
    write = read._replace(method="PATCH", json='{"full_name": "Ann"}')

    def write_succeeds() -> bool:
        url = f"{api(service)}/users/me"
        return httpx.patch(url, headers=write.headers, json={"full_name": "A"}, timeout=TIMEOUT).is_success

    with load(read, write) as report:
        continue_load(report)
        assert report.failures == []

        yield report

        until(write_succeeds, "writes succeed")
        errors = len(report.error_responses)
        continue_load(report, 2)

    assert len(report.error_responses) == errors > 0
    assert {(error.status, error.headers.get("retry-after")) for error in report.error_responses} == {(503, "1")}
    assert [error for error in report.error_responses if json.loads(error.body) != UNAVAILABLE] == []
    # Only writes failed, and every failed request got a complete response.
    assert {failure.split()[1] for failure in report.failures} == {"PATCH"}
    assert (len(report.failures), report.refused) == (errors, 0)
    assert report.slowest < MAX_RESPONSE_SECONDS
    assert service.log_levels == {"info", "warning"}


def is_ready(service: Container) -> bool:
    return get(service, "/health/ready").is_success


def test_full_disk_returns_503_for_writes_until_there_is_space(service: Container) -> None:
    with outage(service) as report:
        service.execute("sh", "-c", FILL_DISK)
        until(lambda: report.error_responses, "writes fail")
        continue_load(report, 2)
        assert is_ready(service)
        service.execute("rm", "/data/ballast")


def test_locked_file_returns_503_for_writes_until_it_is_unlocked(
    service: Container, background: ThreadPoolExecutor
) -> None:
    with outage(service) as report:
        lock = background.submit(service.execute, "python", "-c", LOCK_FILE)
        until(lambda: report.error_responses, "writes fail")
        assert is_ready(service)
        lock.result()
