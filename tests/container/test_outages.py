"""During a database outage, requests return 503 within seconds. Afterwards, the service recovers by itself.

The database is stopped, paused, disconnected, out of connections, locked or read-only. One container of the service
goes through all these outages under a load of reads and writes, and is never restarted.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import asyncpg
import httpx
import pytest
from processes import TIMEOUT, until

from app import PREFIX
from tests.container.conftest import POSTGRESQL, POSTGRESQL_OPTIONS, Database
from tests.container.engine import Container, json_lines, run_container, run_docker
from tests.container.load import Report, Target, continue_load, load
from tests.container.service import count_started_workers, make_targets, run_service

UNAVAILABLE = {"error": "Service unavailable, try again", "type": "service_unavailable"}
# Maximum time in seconds until readiness checks fail after the start of an outage, and succeed after its end.
READINESS_DELAY = 4
# Maximum response time: 2 seconds to get a connection, 6 for the database's response, and a margin for a busy machine.
MAX_RESPONSE_SECONDS = 10
# Maximum number of connections that the service opens. Each of its two workers opens two for requests and one for
# readiness checks.
CONNECTIONS = 6
# The database's connection limit, across all clients.
MAX_CONNECTIONS = 20
# A name server that never responds. When a container is disconnected or stopped, Docker no longer knows its name, and
# forwards queries for the name to this server.
SILENT_NAME_SERVER = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 53)); time.sleep(900)"
TIME_LOOKUP = """
import contextlib, socket, time
started_at = time.monotonic()
with contextlib.suppress(OSError):
    socket.gethostbyname("nobody.invalid")
print(time.monotonic() - started_at)
"""
# The length of an outage in seconds. It exceeds the statement, connection and pool timeouts.
LONG_OUTAGE = 10


@pytest.fixture(scope="module")
def server(network: str) -> Iterator[Container]:
    """A PostgreSQL server that tests may stop."""
    command = ("postgres", "-c", f"max_connections={MAX_CONNECTIONS}")
    with run_container(POSTGRESQL, f"--network={network}", *POSTGRESQL_OPTIONS, command=command) as container:
        yield container.wait_until_healthy()


@pytest.fixture(scope="module")
def database(server: Container) -> Database:
    return Database(server)


@pytest.fixture(scope="module")
def service(image: str, network: str, database: Database) -> Iterator[Container]:
    """The service, with an unresponsive name server and fewer database connections than there are clients."""
    settings = {
        "DATABASE_URL": database.url_by_name,
        "DATABASE_MIGRATE": "true",
        "DATABASE_POOL_SIZE": "2",
        "MAX_REQUESTS": "0",
    }
    on_network = f"--network={network}"
    with (
        run_container(image, on_network, command=("python", "-c", SILENT_NAME_SERVER)) as name_server,
        run_service(image, on_network, f"--dns={name_server.ip}", **settings) as container,
    ):
        until(lambda: float(container.execute("python", "-c", TIME_LOOKUP)) > 1, "lookups time out")
        yield container


class Outage:
    """A database outage while the service is under load."""

    def __init__(self, service: Container, database: Database, report: Report, read: Target, write: Target) -> None:
        self.url = f"http://{service.ip}:8000"
        self.database = database
        self.report = report
        self.read = read
        self.write = write
        self.recovered_at = 0.0
        # Use a new connection for each request, so that requests reach different workers.
        self.client = httpx.Client(timeout=TIMEOUT, limits=httpx.Limits(max_keepalive_connections=0))

    def request(self, target: Target) -> int:
        """Send one request on top of the background load, and return its status."""
        content = target.json or None
        headers = {**target.headers, "Content-Type": "application/json"}
        return self.client.request(target.method, self.url + target.path, headers=headers, content=content).status_code

    def check_readiness(self) -> set[int]:
        """Send several readiness checks at once, to reach several workers. Return the set of response statuses."""
        with ThreadPoolExecutor(4) as executor:
            return set(executor.map(self.request, [self.read._replace(path=f"{PREFIX}/health/ready")] * 4))

    def assert_readiness_fails(self) -> None:
        """Assert that the readiness check fails within READINESS_DELAY. Call this as soon as the outage begins."""
        started_at = time.monotonic()
        until(lambda: self.check_readiness() == {503}, "readiness fails")
        print(f"-- not ready after {time.monotonic() - started_at:.2f} s")  # noqa: T201  shown by `pytest -rP`
        assert time.monotonic() - started_at < READINESS_DELAY

    def assert_recovery(self) -> None:
        """Wait until the database has recovered, then assert that the service is ready within READINESS_DELAY.

        The database has recovered when another client can open as many connections as the service may open. `outage`
        checks that all requests of the load that are sent after this time succeed.
        """
        host = self.database.server.ip
        until(lambda: asyncio.run(answers_on_all_connections(host)), "the database answers")
        self.recovered_at = time.monotonic()
        until(lambda: self.check_readiness() == {200}, "readiness succeeds")
        print(f"-- ready after {time.monotonic() - self.recovered_at:.2f} s")  # noqa: T201  shown by `pytest -rP`
        assert time.monotonic() - self.recovered_at < READINESS_DELAY


async def connect(host: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(f"postgresql://postgres:password@{host}/postgres")


async def answers_on_all_connections(host: str) -> bool:
    """Return whether a PostgreSQL server accepts CONNECTIONS simultaneous connections and responds on each of them."""

    async def query() -> None:
        async with asyncio.timeout(1):
            connection = await connect(host)
            try:
                await connection.fetchval("SELECT 1")
            finally:
                connection.terminate()

    results = await asyncio.gather(*(query() for _ in range(CONNECTIONS)), return_exceptions=True)
    return results == [None] * CONNECTIONS


@contextmanager
def outage(service: Container, database: Database) -> Iterator[Outage]:
    """Put the service under load until the `with` block ends, then check all responses."""
    _, read = make_targets(service)
    write = read._replace(method="PATCH", json='{"full_name": "Ann"}')
    log_before = len(service.log)
    with load(read, write) as report:
        continue_load(report)
        assert report.failures == []

        outage = Outage(service, database, report, read, write)
        with outage.client:
            yield outage
        continue_load(report, 2)

    errors = report.error_responses
    late = [error for error in errors if error.sent_at > outage.recovered_at]
    print(f"-- {len(errors)} errors, {report.responses} responses, slowest {report.slowest:.1f} s")  # noqa: T201  shown by `pytest -rP`
    assert [(error.sent_at - outage.recovered_at, error.body) for error in late] == []
    assert {(error.status, error.headers.get("retry-after")) for error in errors} <= {(503, "1")}
    assert [error for error in errors if json.loads(error.body) != UNAVAILABLE] == []
    # Every failed request got a complete error response. No connection was reset or refused, and no response was lost.
    assert (len(report.failures), report.refused) == (len(errors), 0)
    assert report.slowest < MAX_RESPONSE_SECONDS
    assert {line["level"] for line in json_lines(service.log[log_before:])} <= {"info", "warning"}
    assert count_started_workers(service) == 2


def test_stopped_database_returns_503_until_it_is_started(service: Container, database: Database) -> None:
    with outage(service, database) as it:
        database.server.stop()
        try:
            it.assert_readiness_fails()
            time.sleep(3)
        finally:
            database.server.start()
        it.assert_recovery()

    assert it.report.error_responses


def test_restarted_database_is_used_again_at_once(service: Container, database: Database) -> None:
    with outage(service, database) as it:
        run_docker("restart", database.server.name)
        it.assert_recovery()


def test_paused_database_returns_503_until_it_is_resumed(service: Container, database: Database) -> None:
    """This case is the hardest: the kernel still accepts connections and data, but PostgreSQL never responds."""
    with outage(service, database) as it:
        run_docker("pause", database.server.name)
        try:
            it.assert_readiness_fails()
            time.sleep(LONG_OUTAGE)
        finally:
            run_docker("unpause", database.server.name)
        it.assert_recovery()

    assert it.report.error_responses


def test_disconnected_database_returns_503_until_it_is_connected_even_at_another_address(
    service: Container, database: Database, network: str
) -> None:
    with outage(service, database) as it:
        run_docker("network", "disconnect", network, database.server.name)
        try:
            it.assert_readiness_fails()
            time.sleep(LONG_OUTAGE)
        finally:
            run_docker("network", "connect", network, database.server.name)
        it.assert_recovery()

    assert it.report.error_responses


@contextmanager
def take_all_connections(database: Database) -> Iterator[None]:
    """Terminate the service's connections. Hold all connections that the server allows until the `with` block ends."""
    connections: list[asyncpg.Connection[asyncpg.Record]] = []

    async def take() -> None:
        async with asyncio.timeout(TIMEOUT):
            connections.append(await connect(database.server.ip))
            while len(connections) < MAX_CONNECTIONS:
                try:
                    connections.append(await connect(database.server.ip))
                except asyncpg.TooManyConnectionsError:
                    terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
                    await connections[0].execute(terminate, database.name)

    async def release() -> None:
        for connection in connections:
            connection.terminate()

    with asyncio.Runner() as runner:
        try:
            runner.run(take())
            yield
        finally:
            runner.run(release())


def test_database_without_free_connections_returns_503_until_there_are_some(
    service: Container, database: Database
) -> None:
    with outage(service, database) as it:
        with take_all_connections(database):
            it.assert_readiness_fails()
            time.sleep(3)
        it.assert_recovery()

    assert it.report.error_responses


def test_statement_timeouts_return_503_while_readiness_succeeds(
    service: Container, database: Database, background: ThreadPoolExecutor
) -> None:
    """Every request of the load waits for a lock, so the connection pool is exhausted."""
    with outage(service, database) as it:
        lock = background.submit(database.query, f"BEGIN; LOCK users; SELECT pg_sleep({LONG_OUTAGE})")
        until(lambda: it.report.error_responses, "statements time out")
        while not lock.done():
            assert it.check_readiness() == {200}
        it.assert_recovery()

    assert it.report.error_responses


def test_read_only_database_serves_reads_and_returns_503_for_writes(service: Container, database: Database) -> None:
    def alter_system(change: str) -> None:
        database.query(f"ALTER SYSTEM {change}")
        database.query("SELECT pg_reload_conf()")

    with outage(service, database) as it:
        alter_system("SET default_transaction_read_only = on")
        try:
            until(lambda: it.request(it.write) == 503, "writes fail")
            assert it.request(it.read) == 200
            assert it.check_readiness() == {200}
        finally:
            alter_system("RESET default_transaction_read_only")
        until(lambda: database.query("SHOW default_transaction_read_only") == "off", "new connections can write")
        it.assert_recovery()

    assert it.report.error_responses
