"""While the database is unreachable, overloaded or slow, clients quickly get a 503 in the common error format."""

import asyncio
import gc
from collections.abc import AsyncIterator
from functools import partial
from time import monotonic
from uuid import uuid4

import anyio
import asyncpg
import httpx
import pytest
import structlog
from sqlalchemy import event, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from app.database.errors import DatabaseUnreachable, is_unavailable
from app.errors import StartupError
from app.security import AccessToken
from app.settings import Settings
from app.users.models import User
from tests.conftest import Service, change, execute, serve
from tests.people import log_in, register, sign_up
from tests.tcp_proxy import tcp_proxy

UNAVAILABLE = {"error": "Service unavailable, try again", "type": "service_unavailable"}


@pytest.fixture
def log_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log the reason for every failure, not only for the first failure of an outage."""
    monkeypatch.setattr("app.database.outages.OUTAGE_SECONDS", 0)


@pytest.fixture
def unreachable(settings: Settings) -> Settings:
    """Settings with the URL of a database server that is not running."""
    return change(settings, database_url="postgresql://user:hunter2@127.0.0.1:1/none")


async def test_unreachable_database_returns_503(unreachable: Settings) -> None:
    async with serve(unreachable, prepared=True) as service:
        response = await register(service.client)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json() == UNAVAILABLE


@pytest.fixture(params=["53300 too many clients", "28P01 password authentication failed"])
async def rejecting_server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """The URL of a database server that rejects every connection, and the reason that the server gives."""
    sqlstate, reason = request.param.split(" ", 1)

    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")  # TLS is not supported
        await reader.read(1024)
        fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{reason}\0\0".encode()
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        writer.close()

    async with await asyncio.start_server(reject, "127.0.0.1", 0) as server:
        yield f"postgresql://user@127.0.0.1:{server.sockets[0].getsockname()[1]}/x", reason


@pytest.mark.usefixtures("log_every_failure")
async def test_rejected_connection_returns_503_and_logs_the_reason(
    settings: Settings, rejecting_server: tuple[str, str], logs: list[structlog.typing.EventDict]
) -> None:
    url, expected = rejecting_server
    async with serve(change(settings, database_url=url), prepared=True) as service:
        token = service.state["tokens"].issue(AccessToken(1, uuid4(), uuid4()))
        auth = {"Authorization": f"Bearer {token}"}
        responses = [
            await service.client.get("/users/me", headers=auth),
            await register(service.client),
            await service.client.get("/health/ready"),
        ]

    assert [response.status_code for response in responses] == [503, 503, 503]
    reasons = [entry["reason"] for entry in logs if entry["event"] == "database unavailable"]
    assert len(reasons) == 3
    assert all(expected in reason for reason in reasons)


async def test_logout_during_an_outage_returns_503(unreachable: Settings) -> None:
    """A 204 would tell the client that the logout had been stored when it had not."""
    async with serve(unreachable, prepared=True) as service:
        response = await service.client.post("/auth/logout", json={"refresh_token": "A" * 64})

    assert response.status_code == 503
    assert response.json() == UNAVAILABLE


async def test_unreachable_database_at_startup_is_reported_in_one_line(unreachable: Settings) -> None:
    with pytest.raises(StartupError) as caught:
        async with serve(unreachable):
            pass

    assert "127.0.0.1:1/none" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_exhausted_pool_returns_503(settings: Settings) -> None:
    async with serve(change(settings, database_pool_size=1, database_pool_timeout=0.2)) as service:
        ann = await sign_up(service.client)
        async with AsyncSession(service.state["engine"]) as session:
            await session.execute(select(1))
            read = await service.client.get("/users/me", headers=ann.auth)
            write = await register(service.client, "bob@example.com")
        after = await service.client.get("/users/me", headers=ann.auth)

    assert (read.status_code, read.json()) == (503, UNAVAILABLE)
    assert (write.status_code, write.json()) == (503, UNAVAILABLE)
    assert after.status_code == 200


async def test_cancelled_requests_return_their_connections(settings: Settings) -> None:
    """Workers cancel requests at shutdown. Cancel requests after different delays, to interrupt them at many stages."""
    async with serve(change(settings, database_pool_size=4)) as service:
        ann = await sign_up(service.client)
        for milliseconds in range(30):
            tasks = [
                asyncio.create_task(request)
                for _ in range(4)
                for request in (log_in(service.client), service.client.get("/users/me", headers=ann.auth))
            ]
            await asyncio.sleep(milliseconds / 1000)
            for task in tasks:
                task.cancel()  # cancel only once, like the server
            await asyncio.gather(*tasks, return_exceptions=True)

        response = await service.client.get("/users/me", headers=ann.auth)
        pool = service.state["engine"].pool

    assert response.status_code == 200
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() == 0


async def test_statement_timeout_returns_503(settings: Settings, session: AsyncSession) -> None:
    """After the timeout, PostgreSQL cancels the statement, and SQLite stops waiting for the lock."""
    async with serve(change(settings, database_statement_timeout=0.5)) as service:
        ann = await sign_up(service.client)
        await session.execute(update(User).values(full_name="locked"))

        during = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})
        await session.rollback()
        after = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert (during.status_code, during.json()) == (503, UNAVAILABLE)
    assert after.status_code == 200


async def test_invalid_statement_is_raised_and_no_outage(
    client: httpx.AsyncClient, session: AsyncSession, logs: list[structlog.typing.EventDict]
) -> None:
    await session.execute(User.metadata.tables["refresh_tokens"].delete())
    connection = await session.connection()
    await connection.exec_driver_sql("ALTER TABLE users RENAME TO elsewhere")
    await session.commit()

    try:
        with pytest.raises((ProgrammingError, OperationalError)):
            await register(client)
    finally:
        connection = await session.connection()
        await connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO users")
        await session.commit()

    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 500)]


async def test_missing_table_during_an_outage_returns_503(service: Service, session: AsyncSession) -> None:
    """While a backup is being restored, a request may fail because a table is missing.

    The table may exist again by the time the error is handled, so the 503 must not depend on looking for it.
    """
    connection = await session.connection()
    await connection.exec_driver_sql("ALTER TABLE users RENAME TO hidden_users")
    await session.commit()
    service.state["outages"].add(DatabaseUnreachable("the restore"))

    try:
        response = await register(service.client)
    finally:
        connection = await session.connection()
        await connection.exec_driver_sql("ALTER TABLE hidden_users RENAME TO users")
        await session.commit()

    assert (response.status_code, response.json()) == (503, UNAVAILABLE)


async def test_database_without_tables_returns_503_until_they_are_back(
    client: httpx.AsyncClient, session: AsyncSession, logs: list[structlog.typing.EventDict]
) -> None:
    """Tables are missing if the schema was dropped or the database is being recreated."""
    tables = ("users", "alembic_version")
    connection = await session.connection()
    for table in tables:
        await connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO hidden_{table}")
    await session.commit()

    try:
        during, ready_during = await register(client), await client.get("/health/ready")
    finally:
        connection = await session.connection()
        for table in tables:
            await connection.exec_driver_sql(f"ALTER TABLE hidden_{table} RENAME TO {table}")
        await session.commit()
    after, ready_after = await register(client), await client.get("/health/ready")

    assert (during.status_code, during.json()) == (503, UNAVAILABLE)
    assert [response.status_code for response in (ready_during, after, ready_after)] == [503, 201, 200]
    [outage] = [entry for entry in logs if entry["event"] == "database unavailable"]
    assert "users" in outage["reason"]
    assert not [entry for entry in logs if entry["log_level"] == "error"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_connections_closed_by_the_server_are_replaced(service: Service, database_url: str) -> None:
    opened: list[asyncpg.Connection] = []
    event.listen(
        service.state["engine"].sync_engine, "connect", lambda dbapi, _: opened.append(dbapi.driver_connection)
    )
    ann = await sign_up(service.client)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(partial(service.client.get, "/users/me", headers=ann.auth))

    pids = [connection.get_server_pid() for connection in opened]
    await execute(database_url, f"SELECT pg_terminate_backend(pid) FROM unnest(ARRAY{pids}) AS pid")
    with anyio.fail_after(10):
        while not all(connection.is_closed() for connection in opened):  # noqa: ASYNC110  there is no event to wait for
            await anyio.sleep(0.01)
    read = await service.client.get("/users/me", headers=ann.auth)
    write = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert opened
    assert (read.status_code, write.status_code) == (200, 200)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("is_write", [False, True])
@pytest.mark.usefixtures("log_every_failure", "short_timeouts")
async def test_silent_server_returns_503_after_one_timeout(
    settings: Settings, is_write: bool, logs: list[structlog.typing.EventDict]
) -> None:
    url = make_url(settings.database_url.get_secret_value())
    async with tcp_proxy(url.host or "", url.port or 5432) as proxy:
        host, _, port = proxy.address.partition(":")
        proxied = url.set(host=host, port=int(port)).render_as_string(hide_password=False)
        async with serve(change(settings, database_url=proxied, database_statement_timeout=2)) as service:
            ann = await sign_up(service.client)
            assert (await service.client.get("/health/ready")).status_code == 200

            proxy.set_state("silent")
            started_at = monotonic()
            if is_write:
                during = await register(service.client, "bob@example.com")
            else:
                during = await service.client.get("/users/me", headers=ann.auth)
            seconds = monotonic() - started_at
            ready = await service.client.get("/health/ready")
            ready_seconds = monotonic() - started_at - seconds
            proxy.set_state("open")
            after = await service.client.get("/users/me", headers=ann.auth)

    assert (during.status_code, during.json()) == (503, UNAVAILABLE)
    assert ready.status_code == 503
    reasons = [entry["reason"] for entry in logs if entry["event"] == "database unavailable"]
    assert reasons[-1] == "TimeoutError: no answer within 1 s"
    assert after.status_code == 200
    # The driver's timeout for statements is 3 s, and the timeout of the readiness check is 1 s. If the driver closed
    # connections gracefully, both requests would take longer.
    assert seconds < 4.9
    assert ready_seconds < 2.9


async def execute_on_two_connections(service: Service, statement: str) -> set[int]:
    """Execute a statement on two connections, and return the PIDs of their server processes."""
    pid = text("SELECT pg_backend_pid()")
    async with AsyncSession(service.state["engine"]) as one, AsyncSession(service.state["engine"]) as two:
        pids = {(await session.scalars(pid)).one() for session in (one, two)}
        for session in (one, two):
            await session.execute(text(statement))
            await session.commit()
        return pids


# When a server becomes read-only, all connections are replaced, because the host name may now resolve to another
# server. Engines with the same URL and timeouts share a `Connector`, which replaces connections for this reason at most
# once every READ_ONLY_SECONDS. The next two tests therefore use different timeouts.


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_connections_whose_server_reports_that_it_is_read_only_are_replaced(
    settings: Settings, logs: list[structlog.typing.EventDict]
) -> None:
    async with serve(change(settings, database_pool_size=2, database_statement_timeout=4.1)) as service:
        ann = await sign_up(service.client)

        before = await execute_on_two_connections(service, "SET default_transaction_read_only = on")
        read = await service.client.get("/users/me", headers=ann.auth)
        write = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})
        after = await execute_on_two_connections(service, "SELECT 1")

    assert (read.status_code, write.status_code) == (200, 200)
    assert not after & before
    assert len([entry for entry in logs if "read-only" in entry["event"]]) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_connection_whose_server_rejects_a_write_as_read_only_is_replaced(settings: Settings) -> None:
    """A connection pooler does not report that its server is read-only. Only a rejected write shows this."""
    async with serve(change(settings, database_pool_size=2, database_statement_timeout=4.2)) as service:
        before = await execute_on_two_connections(service, "SELECT 1")
        async with AsyncSession(service.state["engine"]) as session:
            await session.execute(text("SET TRANSACTION READ ONLY"))
            with pytest.raises(DBAPIError) as caught:
                await session.execute(update(User).values(full_name="A"))
        after = await execute_on_two_connections(service, "SELECT 1")

    assert is_unavailable(caught.value)
    assert not after & before


@pytest.mark.usefixtures("service")  # the lifespan installs the event loop's exception handler
@pytest.mark.parametrize(("error", "lines"), [(ConnectionResetError("reset"), 0), (ValueError("a bug"), 1)])
async def test_abandoned_connection_attempt_is_not_logged(
    caplog: pytest.LogCaptureFixture, error: Exception, lines: int
) -> None:
    asyncio.get_running_loop().create_future().set_exception(error)
    gc.collect()

    assert len(caplog.records) == lines


@pytest.mark.usefixtures("service")
async def test_failed_task_is_logged_even_if_its_error_is_that_of_a_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ConnectionResetError("reset")

    await asyncio.wait({asyncio.create_task(fail())})
    gc.collect()

    assert [record.message.splitlines()[0] for record in caplog.records] == ["Task exception was never retrieved"]
