"""What happens when SQLite's disk is full or its file is locked: what writes is 503, until all is as it was."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from processes import PATIENCE, until

from tests.container.engine import Container, json_lines, running
from tests.container.load import Report, goes_on, load
from tests.container.service import options, targets
from tests.container.test_outages import LONGEST, UNAVAILABLE

FILL = "dd if=/dev/zero of=/data/ballast bs=4096; true"
LOCK = """
import sqlite3, time
sqlite3.connect("/data/app.db", isolation_level=None).execute("BEGIN IMMEDIATE")
time.sleep(8)
"""


@pytest.fixture
def service(image: str) -> Iterator[Container]:
    """The service on a disk of 4 MiB."""
    disk = "--tmpfs=/data:size=4m,uid=10001,gid=0,mode=0770"
    with running(image, disk, *options(MAX_REQUESTS="0")) as container:
        yield container.is_healthy()


@contextmanager
def outage(service: Container) -> Iterator[Report]:
    """Puts the service under load until what happens in the block is over, and judges what clients have seen of it."""
    _, read = targets(service)
    write = read._replace(method="PATCH", json='{"full_name": "Ann"}')

    def is_accepted() -> bool:
        return httpx.patch(
            url + "/users/me", headers=write.headers, json={"full_name": "A"}, timeout=PATIENCE
        ).is_success

    url = f"http://{service.ip}:8000"
    with load(read, write) as report:
        goes_on(report)
        assert report.failures == []

        yield report

        until(is_accepted, "writing is accepted")
        errors = len(report.errors)
        goes_on(report, 2)

    assert len(report.errors) == errors > 0
    assert {(error.status, error.headers.get("retry-after")) for error in report.errors} == {(503, "1")}
    assert [error for error in report.errors if json.loads(error.body) != UNAVAILABLE] == []
    # Nothing but writing is refused, no connection breaks, and nobody is left without an answer.
    assert {failure.split()[1] for failure in report.failures} == {"PATCH"}
    assert (len(report.failures), report.refused) == (errors, 0)
    assert report.slowest < LONGEST
    assert {line["level"] for line in json_lines(service.log)} == {"info", "warning"}


def is_ready(service: Container) -> bool:
    return httpx.get(f"http://{service.ip}:8000/health/ready", timeout=PATIENCE).is_success


def test_a_full_disk_is_503_for_what_writes_until_there_is_room(service: Container) -> None:
    with outage(service) as report:
        service.execute("sh", "-c", FILL)
        until(lambda: report.errors, "writing is refused")
        goes_on(report, 2)
        assert is_ready(service)
        service.execute("rm", "/data/ballast")


def test_a_locked_file_is_503_for_what_writes_until_it_is_unlocked(
    service: Container, background: ThreadPoolExecutor
) -> None:
    with outage(service) as report:
        lock = background.submit(service.execute, "python", "-c", LOCK)
        until(lambda: report.errors, "writing is refused")
        assert is_ready(service)
        lock.result()
