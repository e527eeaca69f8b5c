"""The service works through PgBouncer in transaction pooling mode, and loses no acknowledged write."""

import asyncio
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import structlog
from processes import until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import DatabaseUnreachable
from tests.conftest import ROOT, Service, make_settings, serve
from tests.container.conftest import POSTGRESQL, POSTGRESQL_OPTIONS
from tests.container.engine import Container, run_container, run_docker
from tests.container.postgresql import psql
from tests.container.service import run_service
from tests.container.writers import SETTINGS, run_writers
from tests.people import Person, sign_up, sign_up_superuser

FOLDER = Path(__file__).with_name("pgbouncer")
# PgBouncer's limit on connections to the server, as set in pgbouncer.ini
SERVER_CONNECTIONS = 5
CLIENTS = 200
# Long timeouts, so that tests that are not about timeouts pass on a busy machine
PATIENT = {
    "database_connect_timeout": 60,
    "database_pool_timeout": 60,
    "database_statement_timeout": 60,
}


@pytest.fixture(scope="module")
def server(network: str) -> Iterator[Container]:
    """The PostgreSQL server, on a network where PgBouncer can reach it by its host name."""
    options = (f"--network={network}", "--network-alias=postgresql", "--tmpfs=/var/lib/postgresql")
    with run_container(POSTGRESQL, *POSTGRESQL_OPTIONS, *options) as container:
        yield container.wait_until_healthy()


@pytest.fixture(scope="module")
def pgbouncer_image(docker: str) -> str:  # noqa: ARG001  skips the tests if there is no Docker engine
    return run_docker("build", "--quiet", FOLDER)


@pytest.fixture(scope="module")
def pooler(pgbouncer_image: str, network: str, server: Container) -> Iterator[Container]:  # noqa: ARG001  must run first
    with run_container(pgbouncer_image, f"--network={network}") as container:
        container.wait_for_log("process up")
        yield container


@pytest.fixture
def database(server: Container) -> str:
    """The name of a new, empty database on the server."""
    name = f"test_{uuid4().hex}"
    psql(server, f"CREATE DATABASE {name}")
    return name


@pytest.fixture
def url(pooler: Container, database: str) -> str:
    """The URL for connecting to the database through PgBouncer.

    Migrations at startup also work through PgBouncer, because they run in one transaction.
    """
    return f"postgresql://postgres:password@{pooler.ip}:6432/{database}"


@asynccontextmanager
async def serve_pooled(url: str, **settings: object) -> AsyncIterator[Service]:
    async with serve(make_settings(database_url=url, database_migrate=True, **settings)) as service:
        yield service


def run_admin_command(server: Container, pooler: Container, command: str) -> None:
    """Run a command in PgBouncer's admin console."""
    options = (f"--host={pooler.ip}", "--port=6432", "--username=postgres", "--dbname=pgbouncer")
    server.execute("env", "PGPASSWORD=password", "psql", *options, f"--command={command}")


async def test_rejected_startup_parameters_are_logged_once_and_timeouts_apply(
    url: str, server: Container, database: str, logs: list[structlog.typing.EventDict]
) -> None:
    async with serve_pooled(url) as service:
        ann = await sign_up(service.client)
        statuses = [
            (await service.client.get("/users/me", headers=ann.auth)).status_code,
            (await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})).status_code,
            (await service.client.get("/health/ready")).status_code,
        ]
        async with AsyncSession(service.state["engine"]) as session:
            limits = [
                await session.scalar(text(f"SHOW {name}"))
                for name in ("statement_timeout", "idle_in_transaction_session_timeout")
            ]
        async with AsyncSession(service.state["read_engine"]) as session:
            outside = [await session.scalar(text("SHOW statement_timeout")) for _ in range(SERVER_CONNECTIONS)]

    assert statuses == [200, 200, 200]
    assert limits == ["5s", "5s"]
    assert set(outside) == {"0"}  # a transaction's timeout does not remain on a shared connection
    assert sum("a pooler rejects startup parameters" in entry["event"] for entry in logs) == 1
    assert psql(server, "SELECT full_name FROM users", database) == "A"


# Slow statements -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lock(server: Container, database: str, statement: str) -> AsyncIterator[None]:
    """Run a statement in a transaction, and hold its locks until the `with` block ends."""
    connection = await asyncpg.connect(f"postgresql://postgres:password@{server.ip}/{database}")
    async with connection.transaction():
        await connection.execute(statement)
        yield
    await connection.close()


def running_statements(server: Container, database: str) -> str:
    """Return the database's statements that are waiting for a lock or running `pg_sleep`."""
    waits = "datname = '{}' AND state = 'active' AND (wait_event_type = 'Lock' OR wait_event = 'PgSleep')"
    return psql(server, f"SELECT query FROM pg_stat_activity WHERE {waits.format(database)}")


async def test_slow_write_is_cancelled_by_the_transactions_timeout(
    url: str, server: Container, database: str, logs: list[structlog.typing.EventDict]
) -> None:
    async with serve_pooled(url, database_statement_timeout=1) as service:
        ann = await sign_up(service.client)
        async with lock(server, database, "SELECT id FROM users FOR UPDATE"):
            during = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})
            running = running_statements(server, database)
        after = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert (during.status_code, after.status_code) == (503, 200)
    assert running == ""
    (reason,) = [entry["reason"] for entry in logs if entry["event"] == "database unavailable"]
    assert "canceling statement due to statement timeout" in reason


async def test_slow_read_is_cancelled_on_the_server_by_the_drivers_timeout(
    url: str, server: Container, database: str
) -> None:
    async with serve_pooled(url, database_statement_timeout=1) as service:
        ann = await sign_up(service.client)
        async with lock(server, database, "LOCK TABLE users"):
            response = await service.client.get("/users/me", headers=ann.auth)  # read with FastReader
            async with AsyncSession(service.state["read_engine"]) as session:
                with pytest.raises(DatabaseUnreachable):
                    await session.execute(text("SELECT pg_sleep(600)"))
            until(lambda: running_statements(server, database) == "", "the statements are cancelled")
        after = await service.client.get("/users/me", headers=ann.auth)

    assert response.status_code == 503
    assert after.status_code == 200


async def test_unresponsive_pooler_returns_503(url: str, pooler: Container) -> None:
    async with serve_pooled(url, database_statement_timeout=1) as service:
        ann = await sign_up(service.client)
        run_docker("pause", pooler.name)
        try:
            read = await service.client.get("/users/me", headers=ann.auth)
            write = await service.client.post("/auth/logout", json={"refresh_token": ann.refresh_token})
        finally:
            run_docker("unpause", pooler.name)
        after = await service.client.get("/users/me", headers=ann.auth)

    assert (read.status_code, write.status_code) == (503, 503)
    assert after.status_code == 200


# Prepared statements -------------------------------------------------------------------------------------------------


class Load:
    """Many clients that concurrently read, write, and search. Each search needs a different SQL statement."""

    def __init__(self, service: Service, person: Person) -> None:
        self.client = service.client
        self.client.event_hooks = {}  # do not check responses against the OpenAPI document, which would be slow
        self.auth = person.auth
        self.is_stopped = False
        self.statuses: Counter[int] = Counter()

    async def run_client(self, number: int) -> None:
        """Send one request after another until `is_stopped` is set."""
        for count in itertools.count(number):
            if self.is_stopped:
                return
            match count % 4:
                case 0 if number < SERVER_CONNECTIONS:  # more clients would only wait for the lock on the row
                    response = await self.client.patch("/users/me", headers=self.auth, json={"full_name": str(count)})
                case 0:
                    response = await self.client.post("/auth/logout", json={"refresh_token": uuid4().hex * 2})
                case 1:
                    response = await self.client.get(
                        f"/users/?q=name {number}&limit={1 + count % 50}", headers=self.auth
                    )
                case _:
                    response = await self.client.get("/users/me", headers=self.auth)
            self.statuses[response.status_code] += 1

    async def wait(self, seconds: float) -> Counter[int]:
        """Wait at least `seconds`, and until at least two responses per client have arrived since the last call.

        Returns:
            The statuses received since the last call.
        """
        await asyncio.sleep(seconds)
        async with asyncio.timeout(300):
            while self.statuses.total() < 2 * CLIENTS:  # noqa: ASYNC110  there is no event to wait for
                await asyncio.sleep(0.1)
        statuses, self.statuses = self.statuses, Counter()
        return statuses


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.soak)])
async def test_prepared_statements_of_many_clients_work_on_few_connections(
    url: str, server: Container, pooler: Container, database: str, seconds: float
) -> None:
    async with serve_pooled(url, **PATIENT, database_pool_size=CLIENTS) as service:
        async with AsyncSession(service.state["engine"]) as session:
            root = await sign_up_superuser(service.client, session)
        load = Load(service, root)
        clients = [asyncio.create_task(load.run_client(number)) for number in range(CLIENTS)]
        try:
            calm = await load.wait(seconds)
            count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
            connections = await asyncio.to_thread(psql, server, count)
            await asyncio.to_thread(psql, server, "ALTER TABLE users ADD COLUMN note text", database)
            after_added_column = await load.wait(seconds)
            await asyncio.to_thread(run_admin_command, server, pooler, "RECONNECT")
            after_reconnect = await load.wait(seconds)
            # Change the result type of prepared statements. PgBouncer keeps the old statements until it reconnects.
            change_type = "ALTER TABLE users ALTER COLUMN full_name TYPE varchar(300)"
            await asyncio.to_thread(psql, server, change_type, database)
            await asyncio.to_thread(run_admin_command, server, pooler, "RECONNECT")
            meanwhile = await load.wait(0)
            after_changed_type = await load.wait(seconds)
        finally:
            load.is_stopped = True
            await asyncio.wait(clients)
    print(f"-- {calm}, {after_added_column}, {after_reconnect}, {meanwhile}, {after_changed_type}")  # noqa: T201  shown by `pytest -rP`

    assert int(connections) <= SERVER_CONNECTIONS + 1  # and psql's own connection
    assert set(calm) == set(after_added_column) == set(after_reconnect) == set(after_changed_type) == {200, 204}
    assert set(meanwhile) <= {200, 204, 503}


# The whole service ---------------------------------------------------------------------------------------------------


def test_restarted_pooler_loses_no_acknowledged_write(
    image: str, network: str, server: Container, pooler: Container, database: str
) -> None:
    url = f"postgresql://postgres:password@{pooler.name}:6432/{database}"
    settings = {**SETTINGS, "DATABASE_URL": url, "DATABASE_MIGRATE": "true", "MAX_REQUESTS": "0"}
    with run_service(image, f"--network={network}", **settings) as service:
        with run_writers(f"http://{service.ip}:8000") as writers:
            for _ in range(2):
                writers.wait_for_writes()
                # Let Docker kill PgBouncer after a second. Otherwise, PgBouncer would wait until its clients
                # disconnect.
                run_docker("restart", "--time=1", pooler.name)
            writers.wait_for_writes()
        statuses = dict(writers.statuses)
        said = sum("a pooler rejects startup parameters" in message for message in service.messages("info"))
        levels = service.log_levels
    print(f"-- {statuses}")  # noqa: T201  shown by `pytest -rP`

    stored = set(psql(server, "SELECT email FROM users", database).splitlines())
    assert set(writers.acknowledged) - stored == set()
    assert set(statuses) <= {201, 503}
    assert levels <= {"info", "warning"}
    assert said == 1


def test_api_tests_pass_through_pgbouncer(pooler: Container) -> None:
    """One test file is excluded, because it runs PREPARE, which does not work with transaction pooling."""
    folders = ["tests/accounts", "tests/auth", "tests/health", "tests/users"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *folders, "-k", "postgresql"]
    result = subprocess.run(
        [*command, "--deselect=tests/users/test_plans.py"],
        cwd=ROOT,
        env=os.environ | {"TEST_DATABASE_URL": f"postgresql://postgres:password@{pooler.ip}:6432/postgres"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout
