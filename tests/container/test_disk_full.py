"""While PostgreSQL's disk is full, writes return 503, reads succeed, and few lines are logged. Then writes succeed."""

import itertools
import time
from collections.abc import Iterator

import httpx
import pytest
from processes import TIMEOUT, until

from tests.container.conftest import POSTGRESQL, POSTGRESQL_OPTIONS, Database
from tests.container.engine import Container, run_container
from tests.container.load import assert_no_request_lost, continue_load, load
from tests.container.service import PERSON, SETTINGS, count_started_workers, get, make_targets, run_service

WORKERS = int(SETTINGS["WEB_CONCURRENCY"])
# During an outage, each worker logs the outage at most once every OUTAGE_SECONDS seconds.
OUTAGE_SECONDS = 30
FILLER = "/var/lib/postgresql/filler"


@pytest.fixture(scope="module")
def server(network: str) -> Iterator[Container]:
    """A PostgreSQL server with a small disk."""
    options = (f"--network={network}", "--tmpfs=/var/lib/postgresql:size=256M")
    with run_container(POSTGRESQL, *POSTGRESQL_OPTIONS, *options) as container:
        yield container.wait_until_healthy()


def test_full_disk_fails_only_writes_and_logs_few_lines(image: str, network: str, server: Container) -> None:
    database = Database(server)
    settings = {"DATABASE_URL": database.url_by_name, "DATABASE_MIGRATE": "true", "MAX_REQUESTS": "0"}
    numbers = itertools.count()
    with run_service(image, f"--network={network}", **settings) as service:
        users = f"http://{service.ip}:8000/users/"

        def register() -> int:
            person = {**PERSON, "email": f"user{next(numbers)}@example.com"}
            return httpx.post(users, json=person, timeout=TIMEOUT).status_code

        def log_lines() -> list[dict[str, object]]:
            return [line for line in service.log_lines if line["event"] == "database unavailable"]

        with load(make_targets(service)[1]) as reads:
            server.execute("sh", "-c", f"! dd if=/dev/zero of={FILLER} bs=8k")  # fill the disk until dd fails
            started_at = time.monotonic()
            until(lambda: register() == 503, "a write fails")
            statuses = [register() for _ in range(20)]
            until(lambda: get(service, "/health/ready").status_code == 200, "readiness succeeds, because reads do")
            seconds = time.monotonic() - started_at
            lines = log_lines()
            continue_load(reads)

            server.execute("rm", FILLER)
            until(lambda: register() == 201, "writes succeed")
            after = [register() for _ in range(10)]

        assert_no_request_lost(reads)
        assert statuses.count(503) > 10  # a few writes may succeed, because some pages have free space
        assert set(statuses) <= {201, 503}
        assert after == [201] * 10
        assert "DiskFullError" in str(lines[0]["reason"])
        assert "No space left on device" in str(lines[0]["reason"])
        assert len(lines) <= WORKERS * (1 + seconds / OUTAGE_SECONDS)
        assert service.log_levels == {"info", "warning"}
        assert count_started_workers(service) == WORKERS
        assert "No space left on device" in server.log
