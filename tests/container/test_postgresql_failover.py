"""After a failover or switchover under load, the service uses the new primary and has lost no acknowledged write."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from processes import TIMEOUT, until

from app import NAME, PREFIX
from tests.container.engine import Container, run_docker
from tests.container.load import Report, continue_load, load
from tests.container.postgresql import configure, promote, psql, run_primary, run_standby
from tests.container.service import api, count_started_workers, make_targets, run_service
from tests.container.writers import SETTINGS, Writers, run_writers

WORKERS = 2
# Maximum time in seconds until all workers use the new primary, even though the old one is still running.
SWITCHOVER_SECONDS = 10


@pytest.fixture
def primary(network: str) -> Iterator[Container]:
    with run_primary(network) as server:
        yield server


@pytest.fixture
def standby(primary: Container, network: str) -> Iterator[Container]:
    """A synchronous standby, which stores every write before the primary acknowledges it."""
    with run_standby(primary, network) as server:
        server.wait_until_healthy()
        configure(primary, synchronous_standby_names="*")
        synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        until(lambda: psql(primary, synchronous) == "1", "the standby is synchronous")
        yield server


@contextmanager
def service_under_load(
    image: str, network: str, url: str, *options: str
) -> Iterator[tuple[Container, Report, Writers]]:
    """Run the service under a load of reads, readiness checks and writes. A 503 is the only failure allowed."""
    # Keep the pool small: a readiness check times out after one second, and all of the pool's connections must be
    # replaced within this time.
    settings = {
        **SETTINGS,
        "DATABASE_URL": url,
        "DATABASE_MIGRATE": "true",
        "DATABASE_POOL_SIZE": "2",
        "MAX_REQUESTS": "0",
    }
    with run_service(image, f"--network={network}", *options, **settings) as service:
        _, read = make_targets(service)
        with (
            load(read, read._replace(path=f"{PREFIX}/health/ready")) as report,
            run_writers(f"http://{service.ip}:8000") as writers,
        ):
            continue_load(report)
            writers.wait_for_writes()
            assert (report.failures, set(writers.statuses)) == ([], {201})
            yield service, report, writers
            writers.wait_for_writes()
            continue_load(report)
        print(f"-- writes {dict(writers.statuses)}, reads {report.responses}, {len(report.failures)} failed")  # noqa: T201  shown by `pytest -rP`
        assert set(writers.statuses) <= {201, 503}
        assert {error.status for error in report.error_responses} <= {503}
        assert (len(report.failures), report.refused) == (len(report.error_responses), 0)
        assert service.log_levels <= {"info", "warning"}
        assert count_started_workers(service) == WORKERS


def assert_stored(server: Container, writers: Writers) -> None:
    """Assert that the server has stored every acknowledged write."""
    stored = set(psql(server, "SELECT email FROM users").splitlines())
    assert set(writers.acknowledged) - stored == set()


def readiness(service: Container) -> int:
    return httpx.get(f"{api(service)}/health/ready", timeout=TIMEOUT).status_code


def test_failover_loses_no_acknowledged_write(image: str, network: str, primary: Container, standby: Container) -> None:
    hosts = f"{primary.name},{standby.name}"
    url = f"postgresql://postgres:password@{hosts}/postgres?target_session_attrs=read-write"
    with service_under_load(image, network, url) as (service, _, writers):
        primary.stop()
        until(lambda: readiness(service) == 503, "readiness fails")
        until(lambda: writers.latest == 503, "writes fail")
        promote(standby)
        promoted_at = time.monotonic()
        until(lambda: readiness(service) == 200, "readiness succeeds")
        print(f"-- ready after {time.monotonic() - promoted_at:.1f} s")  # noqa: T201  shown by `pytest -rP`

    assert_stored(standby, writers)
    assert writers.statuses[503]


def change_address(service: Container, server: Container) -> None:
    """In the service's container, make the host name `database` resolve to the given server."""
    # Rewrite the file in place: Docker has mounted it, so it cannot be replaced. Do not truncate it, because the
    # service may read it at any time.
    script = (
        "import re, sys; file = open('/etc/hosts', 'r+'); text = file.read(); file.seek(0); "
        r"file.write(re.sub(r'.*\bdatabase\n', f'{sys.argv[1]} database\n', text).ljust(len(text), '\n'))"
    )
    run_docker("exec", "--user=0", service.name, "python", "-c", script, server.ip)


def switch_over(primary: Container, standby: Container) -> None:
    """Make the primary read-only and promote the standby, as an orchestrator does. The old primary keeps running."""
    configure(primary, default_transaction_read_only="on")
    caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{psql(primary, 'SELECT pg_current_wal_lsn()')}'"
    until(lambda: psql(standby, caught_up) == "t", "the standby has caught up")
    promote(standby)


def wait_until_replaced(primary: Container, standby: Container) -> float:
    """Wait until all of the service's connections go to the new primary.

    Returns:
        The number of seconds until no connection to the old primary was left.
    """
    started_at = time.monotonic()
    count = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{NAME}'"
    until(lambda: psql(primary, count) == "0", "no connection leads to the old primary")
    seconds = time.monotonic() - started_at
    until(lambda: int(psql(standby, count)) >= WORKERS, "the connections lead to the new primary")
    print(f"-- all connections replaced after {seconds:.1f} s")  # noqa: T201  shown by `pytest -rP`
    return seconds


def read_only_warnings(service: Container) -> int:
    return sum("has become read-only" in message for message in service.messages("warning"))


def test_switchover_behind_a_name_replaces_all_connections(
    image: str, network: str, primary: Container, standby: Container
) -> None:
    url = "postgresql://postgres:password@database/postgres"
    with service_under_load(image, network, url, f"--add-host=database:{primary.ip}") as (service, report, writers):
        switch_over(primary, standby)
        until(lambda: writers.latest == 503, "writes fail")
        continue_load(report, 6)  # in this time, the service closes its read-only connections
        change_address(service, standby)
        assert wait_until_replaced(primary, standby) < SWITCHOVER_SECONDS
        writers.wait_for_writes()  # after this, all writes on replaced connections have failed
        before = writers.statuses[503]
        writers.wait_for_writes()
        assert writers.statuses[503] == before
        assert read_only_warnings(service) == WORKERS

    assert_stored(standby, writers)
    assert report.failures == []  # no read or readiness check failed


def test_switchover_to_the_second_host_replaces_all_connections(
    image: str, network: str, primary: Container, standby: Container
) -> None:
    hosts = f"{primary.name},{standby.name}"
    url = f"postgresql://postgres:password@{hosts}/postgres?target_session_attrs=read-write"
    with service_under_load(image, network, url) as (service, _, writers):
        switch_over(primary, standby)
        assert wait_until_replaced(primary, standby) < SWITCHOVER_SECONDS
        writers.wait_for_writes()  # after this, all writes on replaced connections have failed
        before = writers.statuses[503]
        writers.wait_for_writes()
        assert writers.statuses[503] == before
        assert read_only_warnings(service) == WORKERS

    assert_stored(standby, writers)
