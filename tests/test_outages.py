"""What a client sees when the database is away, full or slow: 503, soon, in the one format."""

import asyncio
import gc
from collections.abc import AsyncIterator
from functools import partial
from time import monotonic

import anyio
import asyncpg
import httpx
import pytest
import structlog
from sqlalchemy import event, make_url, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from app.database import is_unavailable
from app.errors import StartupError
from app.settings import Settings
from app.users.models import User
from tests.conftest import Service, change, execute, serve
from tests.gate import gate_before
from tests.people import log_in, register, sign_up

UNAVAILABLE = {"error": "Service unavailable, try again", "type": "service_unavailable"}


def with_database(settings: Settings, **changes: object) -> Settings:
    """The same settings with another database or other limits."""
    return change(settings, **{f"database_{name}": value for name, value in changes.items()})


def out_of_reach(settings: Settings) -> Settings:
    """Settings with a database that nobody serves."""
    return with_database(settings, url="postgresql://user:hunter2@127.0.0.1:1/none")


async def test_a_database_out_of_reach_is_503(settings: Settings) -> None:
    async with serve(out_of_reach(settings), prepared=True) as service:
        response = await register(service.client)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json() == UNAVAILABLE


@pytest.fixture(params=["53300 too many clients", "28P01 password authentication failed"])
async def refusal(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """The URL of a server that refuses whoever connects, and why it does."""
    sqlstate, reason = request.param.split(" ", 1)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")  # no TLS
        await reader.read(1024)
        fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{reason}\0\0".encode()
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"postgresql+asyncpg://user@127.0.0.1:{server.sockets[0].getsockname()[1]}/x", reason


async def test_a_server_that_refuses_connections_is_503_and_the_log_says_why(
    settings: Settings, refusal: tuple[str, str], logs: list[structlog.typing.EventDict]
) -> None:
    url, expected = refusal
    async with serve(with_database(settings, url=url), prepared=True) as service:
        auth = {"Authorization": f"Bearer {service.state['tokens'].issue(1)}"}
        responses = [
            await service.client.get("/users/me", headers=auth),
            await register(service.client),
            await service.client.get("/health/ready"),
        ]

    assert [response.status_code for response in responses] == [503, 503, 503]
    reasons = [entry["reason"] for entry in logs if entry["event"] == "database unavailable"]
    assert len(reasons) == 3
    assert all(expected in reason for reason in reasons)


async def test_a_logout_that_did_not_happen_is_not_confirmed(settings: Settings) -> None:
    async with serve(out_of_reach(settings), prepared=True) as service:
        response = await service.client.post("/auth/logout", json={"refresh_token": "A" * 64})

    assert response.status_code == 503
    assert response.json() == UNAVAILABLE


async def test_a_database_out_of_reach_ends_the_start_with_one_line(settings: Settings) -> None:
    with pytest.raises(StartupError) as caught:
        async with serve(out_of_reach(settings)):
            pass

    assert "127.0.0.1:1/none" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_full_pool_is_503(settings: Settings) -> None:
    async with serve(with_database(settings, pool_size=1, pool_timeout=0.2)) as service:
        ann = await sign_up(service.client)
        async with AsyncSession(service.state["engine"]) as session:
            await session.execute(select(1))
            response = await service.client.get("/users/me", headers=ann.auth)
        after = await service.client.get("/users/me", headers=ann.auth)

    assert (response.status_code, response.json()) == (503, UNAVAILABLE)
    assert after.status_code == 200


async def test_as_many_writes_at_once_as_connections_do_not_wait_for_each_other_forever(settings: Settings) -> None:
    async with serve(with_database(settings, pool_size=1, pool_timeout=0.5)) as service:
        ann = await sign_up(service.client)

        response = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert response.status_code == 200


async def test_requests_that_are_cancelled_leave_no_connection_behind(settings: Settings) -> None:
    """As when a worker ends before they do; each round cancels them at another moment."""
    async with serve(with_database(settings, pool_size=4)) as service:
        ann = await sign_up(service.client)
        for milliseconds in range(30):
            tasks = [
                asyncio.create_task(request)
                for _ in range(4)
                for request in (log_in(service.client), service.client.get("/users/me", headers=ann.auth))
            ]
            await asyncio.sleep(milliseconds / 1000)
            for task in tasks:
                task.cancel()  # once, as the server does
            await asyncio.gather(*tasks, return_exceptions=True)

        response = await service.client.get("/users/me", headers=ann.auth)
        pool = service.state["engine"].pool

    assert response.status_code == 200
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() == 0


async def test_a_statement_that_waits_too_long_is_503(settings: Settings, session: AsyncSession) -> None:
    """PostgreSQL cancels it; SQLite gives up waiting for the lock."""
    async with serve(with_database(settings, statement_timeout=0.5)) as service:
        ann = await sign_up(service.client)
        await session.execute(update(User).values(full_name="locked"))

        during = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})
        await session.rollback()
        after = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert (during.status_code, during.json()) == (503, UNAVAILABLE)
    assert after.status_code == 200


async def test_a_statement_that_is_wrong_is_500_and_logged_once(
    client: httpx.AsyncClient, session: AsyncSession, logs: list[structlog.typing.EventDict]
) -> None:
    await session.execute(User.metadata.tables["refresh_tokens"].delete())
    connection = await session.connection()
    await connection.exec_driver_sql("ALTER TABLE users RENAME TO elsewhere")
    await session.commit()

    try:
        response = await register(client)
    finally:
        connection = await session.connection()
        await connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO users")
        await session.commit()

    assert response.status_code == 500
    assert response.json() == {"error": "Internal server error", "type": "internal_error"}
    (error,) = [entry for entry in logs if entry["log_level"] != "info"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["exc_info"]  # the traceback


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_that_the_server_closed_meanwhile_is_replaced(service: Service, database_url: str) -> None:
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
        while not all(connection.is_closed() for connection in opened):  # noqa: ASYNC110  there is no event for it
            await anyio.sleep(0.01)
    read = await service.client.get("/users/me", headers=ann.auth)
    write = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert opened
    assert (read.status_code, write.status_code) == (200, 200)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("is_write", [False, True])
async def test_a_server_that_stops_answering_is_not_waited_for_twice(
    settings: Settings, is_write: bool, logs: list[structlog.typing.EventDict]
) -> None:
    url = make_url(settings.database_url.get_secret_value())
    async with gate_before(url.host or "", url.port or 5432) as gate:
        host, _, port = gate.address.partition(":")
        behind_gate = url.set(host=host, port=int(port)).render_as_string(hide_password=False)
        async with serve(with_database(settings, url=behind_gate, statement_timeout=2)) as service:
            ann = await sign_up(service.client)
            assert (await service.client.get("/health/ready")).status_code == 200

            gate.turn("held")
            started_at = monotonic()
            if is_write:
                during = await register(service.client, "bob@example.com")
            else:
                during = await service.client.get("/users/me", headers=ann.auth)
            seconds = monotonic() - started_at
            ready = await service.client.get("/health/ready")
            ready_seconds = monotonic() - started_at - seconds
            gate.turn("open")
            after = await service.client.get("/users/me", headers=ann.auth)

    assert (during.status_code, during.json()) == (503, UNAVAILABLE)
    assert ready.status_code == 503
    reasons = [entry["reason"] for entry in logs if entry["event"] == "database unavailable"]
    assert reasons[-1] == "TimeoutError: no answer within 1 s"
    assert after.status_code == 200
    # 3 seconds, and 1. It would be some more for each, if the driver ended the connection in order.
    assert seconds < 4.9
    assert ready_seconds < 2.9


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_server_that_becomes_read_only_is_looked_for_again(settings: Settings) -> None:
    """After a failover, its name leads to another one."""
    async with serve(with_database(settings, pool_size=1)) as service:
        ann = await sign_up(service.client)
        async with AsyncSession(service.state["engine"]) as session:
            await session.execute(text("SET default_transaction_read_only = on"))  # of the one connection
            await session.commit()

        read = await service.client.get("/users/me", headers=ann.auth)
        during = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})
        after = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert read.status_code == 200
    assert (during.status_code, during.json()) == (503, UNAVAILABLE)
    assert after.status_code == 200


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("sqlstate", "unavailable"),
    [
        ("08006", True),  # connection failure
        ("25006", True),  # read-only transaction
        ("40001", True),  # serialization failure
        ("40P01", True),  # deadlock
        ("53100", True),  # disk full
        ("53300", True),  # too many connections
        ("55P03", True),  # lock not available
        ("57014", True),  # statement timeout
        ("57P01", True),  # shutdown
        ("22012", False),  # division by zero
        ("40002", False),  # a constraint, checked at the end
        ("42P01", False),  # no such table
        ("XX000", False),  # a bug of PostgreSQL's
    ],
)
async def test_what_the_server_says_is_an_outage_or_a_bug(
    session: AsyncSession, sqlstate: str, unavailable: bool
) -> None:
    with pytest.raises(DBAPIError) as caught:
        await session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"))

    assert is_unavailable(caught.value) == unavailable


@pytest.mark.parametrize(("error", "lines"), [(ConnectionResetError("reset"), 0), (ValueError("a bug"), 1)])
async def test_a_connection_that_nobody_waits_for_any_more_fails_without_a_word(
    service: Service,  # noqa: ARG001  while it runs
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    lines: int,
) -> None:
    asyncio.get_running_loop().create_future().set_exception(error)
    gc.collect()

    assert len(caplog.records) == lines


def test_a_statement_that_a_migration_overtook_may_be_tried_again() -> None:
    assert is_unavailable(asyncpg.InvalidCachedStatementError("cached statement plan is invalid"))
