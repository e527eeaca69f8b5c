"""What happens when PostgreSQL is away, deaf, slow, full or read-only: 503, soon; and then all is as it was.

One container goes through all of it, under a load that reads and writes, and nobody restarts it.
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
from processes import PATIENCE, until

from tests.container.conftest import Database
from tests.container.engine import Container, cli, json_lines, running
from tests.container.load import Report, Target, goes_on, load
from tests.container.service import options, targets, workers

UNAVAILABLE = {"error": "Service unavailable, try again", "type": "service_unavailable"}
# Within which readiness follows the database, both ways.
SOON = 2
# The longest that a request waits, 2 seconds for a connection and 6 for an answer, on a machine that has a lot to do.
LONGEST = 10
# What the two workers may open: two connections for requests, and one for readiness.
CONNECTIONS = 6
# What the database takes, from everybody.
MAX_CONNECTIONS = 20
# A name server that does not answer. Docker asks it for each name that it does not know, such as that of a database
# which is away.
SILENT = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 53)); time.sleep(900)"
LOOKUP = """
import contextlib, socket, time
begun_at = time.monotonic()
with contextlib.suppress(OSError):
    socket.gethostbyname("nobody.invalid")
print(time.monotonic() - begun_at)
"""
# How long an outage must be for statements, new connections and the pool all to be waited for.
LONG = 10


@pytest.fixture(scope="module")
def server(network: str) -> Iterator[Container]:
    """A PostgreSQL that a test may stop."""
    settings = ["--env=POSTGRES_PASSWORD=password", "--health-cmd=pg_isready --host=127.0.0.1", "--health-interval=1s"]
    command = ("postgres", "-c", f"max_connections={MAX_CONNECTIONS}")
    with running("postgres:18-alpine", f"--network={network}", *settings, command=command) as container:
        yield container.is_healthy()


@pytest.fixture(scope="module")
def database(server: Container) -> Database:
    return Database(server)


@pytest.fixture(scope="module")
def service(image: str, network: str, database: Database) -> Iterator[Container]:
    """The service with fewer connections than the load has clients, and a name server that does not answer."""
    url = database.url.replace(database.server.ip, database.server.name)
    settings = options(DATABASE_URL=url, DATABASE_MIGRATE="true", DATABASE_POOL_SIZE="2", MAX_REQUESTS="0")
    with (
        running(image, f"--network={network}", command=("python", "-c", SILENT)) as name_server,
        running(image, f"--network={network}", f"--dns={name_server.ip}", *settings) as container,
    ):
        until(lambda: float(container.execute("python", "-c", LOOKUP)) > 1, "nobody answers for names")
        yield container.is_healthy()


class Outage:
    """Something that happens to the database of a service under load."""

    def __init__(self, service: Container, database: Database, report: Report, read: Target, write: Target) -> None:
        self.url = f"http://{service.ip}:8000"
        self.database = database
        self.report = report
        self.read = read
        self.write = write
        self.back_at = 0.0
        # A new connection for each request, so that each may come to another worker.
        self.client = httpx.Client(timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))

    def ask(self, target: Target) -> int:
        """Asks for something besides the load, and gives the status."""
        content = target.json or None
        headers = {**target.headers, "Content-Type": "application/json"}
        return self.client.request(target.method, self.url + target.path, headers=headers, content=content).status_code

    def readiness(self) -> set[int]:
        """What readiness says when it is asked several times at once: that of the workers who take the connections."""
        with ThreadPoolExecutor(4) as crowd:
            return set(crowd.map(self.ask, [self.read._replace(path="/health/ready")] * 4))

    def shows_in_readiness(self) -> None:
        """Sees that readiness says no: the database has just gone."""
        gone_at = time.monotonic()
        until(lambda: self.readiness() == {503}, "readiness says no")
        print(f"-- not ready after {time.monotonic() - gone_at:.2f} s")  # noqa: T201  as below
        assert time.monotonic() - gone_at < SOON

    def is_over(self) -> None:
        """Waits until the database is back, and sees that readiness says so. From then on, nothing may fail.

        It is back when it answers others, on as many connections as the service may open.
        """
        host = self.database.server.ip
        until(lambda: asyncio.run(answers(host)), "the database answers")
        self.back_at = time.monotonic()
        until(lambda: self.readiness() == {200}, "readiness says yes")
        print(f"-- ready after {time.monotonic() - self.back_at:.2f} s")  # noqa: T201  as below
        assert time.monotonic() - self.back_at < SOON


async def connect(host: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(f"postgresql://postgres:password@{host}/postgres")


async def answers(host: str) -> bool:
    """Whether a PostgreSQL takes all the connections at once, and answers on each."""

    async def ask() -> None:
        async with asyncio.timeout(1):
            connection = await connect(host)
            try:
                await connection.fetchval("SELECT 1")
            finally:
                connection.terminate()

    results = await asyncio.gather(*(ask() for _ in range(CONNECTIONS)), return_exceptions=True)
    return results == [None] * CONNECTIONS


@contextmanager
def outage(service: Container, database: Database) -> Iterator[Outage]:
    """Puts the service under load while the block is executed, and then judges what clients have seen of it."""
    _, read = targets(service)
    write = read._replace(method="PATCH", json='{"full_name": "Ann"}')
    log = len(service.log)
    with load(read, write) as report:
        goes_on(report)
        assert report.failures == []

        outage = Outage(service, database, report, read, write)
        with outage.client:
            yield outage
        goes_on(report, 2)

    late = [error for error in report.errors if error.asked_at > outage.back_at]
    print(f"-- {len(report.errors)} errors, {report.answers} answers, slowest {report.slowest:.1f} s")  # noqa: T201  pytest -rP shows it
    assert [(error.asked_at - outage.back_at, error.body) for error in late] == []
    assert {(error.status, error.headers.get("retry-after")) for error in report.errors} <= {(503, "1")}
    assert [error for error in report.errors if json.loads(error.body) != UNAVAILABLE] == []
    # No broken connection, and nobody is left without an answer.
    assert (len(report.failures), report.refused) == (len(report.errors), 0)
    assert report.slowest < LONGEST
    assert {line["level"] for line in json_lines(service.log[log:])} <= {"info", "warning"}
    assert workers(service) == 2


def test_a_stopped_database_is_503_until_it_is_started(service: Container, database: Database) -> None:
    with outage(service, database) as it:
        database.server.stop()
        try:
            it.shows_in_readiness()
            time.sleep(3)
        finally:
            database.server.start()
        it.is_over()

    assert it.report.errors


def test_a_restarted_database_is_used_again_at_once(service: Container, database: Database) -> None:
    with outage(service, database) as it:
        cli("restart", database.server.name)
        it.is_over()


def test_a_paused_database_is_503_until_it_goes_on(service: Container, database: Database) -> None:
    """The hardest case: connections are accepted, whatever is sent is taken, and nobody answers."""
    with outage(service, database) as it:
        cli("pause", database.server.name)
        try:
            it.shows_in_readiness()
            time.sleep(LONG)
        finally:
            cli("unpause", database.server.name)
        it.is_over()

    assert it.report.errors


def test_a_database_that_cannot_be_reached_is_503_until_it_can_even_at_another_address(
    service: Container, database: Database, network: str
) -> None:
    with outage(service, database) as it:
        cli("network", "disconnect", network, database.server.name)
        try:
            it.shows_in_readiness()
            time.sleep(LONG)
        finally:
            cli("network", "connect", network, database.server.name)
        it.is_over()

    assert it.report.errors


@contextmanager
def crowd(database: Database) -> Iterator[None]:
    """Takes all the connections that a PostgreSQL has, those of the service included, and keeps them."""
    taken: list[asyncpg.Connection[asyncpg.Record]] = []

    async def come() -> None:
        async with asyncio.timeout(PATIENCE):
            taken.append(await connect(database.server.ip))
            while len(taken) < MAX_CONNECTIONS:
                try:
                    taken.append(await connect(database.server.ip))
                except asyncpg.TooManyConnectionsError:
                    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
                    await taken[0].execute(others, database.name)

    async def leave() -> None:
        for connection in taken:
            connection.terminate()

    with asyncio.Runner() as runner:
        try:
            runner.run(come())
            yield
        finally:
            runner.run(leave())


def test_when_others_take_all_connections_it_is_503_until_they_leave(service: Container, database: Database) -> None:
    with outage(service, database) as it:
        with crowd(database):
            it.shows_in_readiness()
            time.sleep(3)
        it.is_over()

    assert it.report.errors


def test_when_statements_take_too_long_they_are_503_and_it_stays_ready(
    service: Container, database: Database, background: ThreadPoolExecutor
) -> None:
    """Each request waits for the lock of somebody else, until no connection is left to wait with."""
    with outage(service, database) as it:
        lock = background.submit(database.query, f"BEGIN; LOCK users; SELECT pg_sleep({LONG})")
        until(lambda: it.report.errors, "requests have waited too long")
        while not lock.done():
            assert it.readiness() == {200}
        it.is_over()

    assert it.report.errors


def test_a_read_only_database_is_read_from_and_written_to_again_when_it_may_be(
    service: Container, database: Database
) -> None:
    def alter(change: str) -> None:
        database.query(f"ALTER SYSTEM {change}")
        database.query("SELECT pg_reload_conf()")

    with outage(service, database) as it:
        alter("SET default_transaction_read_only = on")
        try:
            until(lambda: it.ask(it.write) == 503, "writing is refused")
            assert it.ask(it.read) == 200
            assert it.readiness() == {200}
        finally:
            alter("RESET default_transaction_read_only")
        until(lambda: database.query("SHOW default_transaction_read_only") == "off", "new connections may write")
        it.is_over()

    assert it.report.errors
