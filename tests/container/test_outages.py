"""What happens when PostgreSQL is away, deaf, slow, full or read-only: 503, soon; and then all is as it was.

One container goes through all of it, under a load that reads and writes, and nobody restarts it.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.container.conftest import Database
from tests.container.engine import Container, cli, json_lines, running
from tests.container.load import Report, Target, goes_on, load
from tests.container.service import options, targets, workers
from tests.processes import PATIENCE, until

UNAVAILABLE = {"error": "Service unavailable, try again", "type": "service_unavailable"}
# What takes 2 seconds at most, on a machine that has a lot to do.
SOON = 6
# The longest that a request waits, 2 seconds for a connection and 6 for an answer, on such a machine.
LONGEST = 10
# When the database has been back for this long, nobody hears of the outage any more.
RECOVERY = 3
# How long an outage must be for statements, new connections and the pool all to be waited for.
LONG = 10


@pytest.fixture(scope="module")
def server(network: str) -> Iterator[Container]:
    """A PostgreSQL that a test may stop."""
    settings = ["--env=POSTGRES_PASSWORD=password", "--health-cmd=pg_isready --host=127.0.0.1", "--health-interval=1s"]
    command = ("postgres", "-c", "max_connections=20")
    with running("postgres:18-alpine", f"--network={network}", *settings, command=command) as container:
        yield container.is_healthy()


@pytest.fixture(scope="module")
def database(server: Container) -> Database:
    return Database(server)


@pytest.fixture(scope="module")
def service(image: str, network: str, database: Database) -> Iterator[Container]:
    """The service with fewer connections than the load has clients, and otherwise as it comes."""
    url = database.url.replace(database.server.ip, database.server.name)
    settings = options(DATABASE_URL=url, DATABASE_MIGRATE="true", DATABASE_POOL_SIZE="2", MAX_REQUESTS="0")
    with running(image, f"--network={network}", *settings) as container:
        yield container.is_healthy()


class Outage:
    """Something that happens to the database of a service under load."""

    def __init__(self, service: Container, report: Report, read: Target, write: Target) -> None:
        self.service = service
        self.report = report
        self.read = read
        self.write = write
        self.over_at = 0.0

    def ask(self, target: Target) -> int:
        """Asks for something besides the load, and gives the status."""
        url = f"http://{self.service.ip}:8000{target.path}"
        return httpx.request(
            target.method, url, headers=target.headers, json=target.json and json.loads(target.json), timeout=PATIENCE
        ).status_code

    def is_ready(self) -> bool:
        """Whether readiness says so."""
        status = self.ask(self.read._replace(path="/health/ready"))
        assert status in {200, 503}
        return status == 200

    def shows_in_readiness(self) -> None:
        """Waits until readiness says no."""
        started_at = time.monotonic()
        until(lambda: not self.is_ready(), "readiness says no")
        assert time.monotonic() - started_at < SOON

    def is_over(self) -> None:
        """Waits until readiness says yes: the database has just come back."""
        self.over_at = time.monotonic()
        until(self.is_ready, "readiness says yes")
        assert time.monotonic() - self.over_at < SOON


@contextmanager
def outage(service: Container) -> Iterator[Outage]:
    """Puts the service under load while the block is executed, and then judges what clients have seen of it."""
    _, read = targets(service)
    write = read._replace(method="PATCH", json='{"full_name": "Ann"}')
    log = len(service.log)
    with load(read, write) as report:
        goes_on(report)
        assert report.failures == []

        outage = Outage(service, report, read, write)
        yield outage

        time.sleep(max(0, outage.over_at + RECOVERY - time.monotonic()))
        recovered_at = time.monotonic()
        goes_on(report, 2)

    assert [error for error in report.errors if error.asked_at > recovered_at] == []
    assert {(error.status, error.headers.get("retry-after")) for error in report.errors} <= {(503, "1")}
    assert [error for error in report.errors if json.loads(error.body) != UNAVAILABLE] == []
    # No broken connection, and nobody is left without an answer.
    assert (len(report.failures), report.refused) == (len(report.errors), 0)
    assert report.slowest < LONGEST
    assert {line["level"] for line in json_lines(service.log[log:])} <= {"info", "warning"}
    assert workers(service) == 2
    print(f"-- {len(report.errors)} errors, {report.answers} answers, slowest {report.slowest:.1f} s")  # noqa: T201  pytest -rP shows it


def test_a_stopped_database_is_503_until_it_is_started(service: Container, database: Database) -> None:
    with outage(service) as it:
        database.server.stop()
        it.shows_in_readiness()
        time.sleep(3)
        database.server.start().is_healthy()
        it.is_over()

    assert it.report.errors


def test_a_restarted_database_is_used_again_at_once(service: Container, database: Database) -> None:
    with outage(service) as it:
        cli("restart", database.server.name)
        database.server.is_healthy()
        it.is_over()


def test_a_paused_database_is_503_until_it_goes_on(service: Container, database: Database) -> None:
    """The hardest case: connections are accepted, whatever is sent is taken, and nobody answers."""
    with outage(service) as it:
        cli("pause", database.server.name)
        it.shows_in_readiness()
        time.sleep(LONG)
        cli("unpause", database.server.name)
        it.is_over()

    assert it.report.errors


def test_a_database_that_cannot_be_reached_is_503_until_it_can_even_at_another_address(
    service: Container, database: Database, network: str
) -> None:
    with outage(service) as it:
        cli("network", "disconnect", network, database.server.name)
        it.shows_in_readiness()
        time.sleep(LONG)
        cli("network", "connect", network, database.server.name)
        it.is_over()

    assert it.report.errors


def test_when_others_take_all_connections_it_is_503_until_they_leave(service: Container, database: Database) -> None:
    connect = "psql --username=postgres"

    def signal_workers(name: str) -> None:
        service.execute("python", "-c", f"import os, signal; os.kill(-1, signal.{name})")

    with outage(service) as it:
        signal_workers("SIGSTOP")  # else they would be the first to take those that they lose
        database.server.execute("pkill", "-f", f"^postgres: postgres {database.name}")
        crowd = f"for _ in $(seq 25); do sleep 600 | {connect} & done; wait"
        cli("exec", "--detach", database.server.name, "sh", "-c", crowd)
        refused = f"! {connect} --command='SELECT 1' || exit 1"
        until(
            lambda: "too many clients" in database.server.execute("sh", "-c", f"({refused}) 2>&1; true"), "it is full"
        )
        signal_workers("SIGCONT")
        it.shows_in_readiness()
        time.sleep(3)
        database.server.execute("pkill", "sleep")
        it.is_over()

    assert it.report.errors


def test_when_statements_take_too_long_they_are_503_and_it_stays_ready(
    service: Container, database: Database, background: ThreadPoolExecutor
) -> None:
    """Each request waits for the lock of somebody else, until no connection is left to wait with."""
    with outage(service) as it:
        lock = background.submit(database.query, f"BEGIN; LOCK users; SELECT pg_sleep({LONG})")
        until(lambda: it.report.errors, "requests have waited too long")
        while not lock.done():
            assert it.is_ready()
        it.is_over()

    assert it.report.errors


def test_a_read_only_database_is_read_from_and_written_to_again_when_it_may_be(
    service: Container, database: Database
) -> None:
    def alter(change: str) -> None:
        statement = f"--command=ALTER DATABASE {database.name} {change} default_transaction_read_only"
        database.server.execute("psql", "--username=postgres", statement + " = on" * (change == "SET"))

    with outage(service) as it:
        alter("SET")
        database.server.execute("pkill", "-f", f"^postgres: postgres {database.name}")
        until(lambda: it.ask(it.write) == 503, "writing is refused")
        assert it.ask(it.read) == 200
        assert it.is_ready()
        alter("RESET")  # which no connection that is open hears of
        it.is_over()

    assert it.report.errors
