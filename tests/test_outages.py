"""What a client sees when the database is away, full or slow: 503, soon, in the one format."""

import asyncio
import gc
from collections.abc import AsyncIterator
from functools import partial

import anyio
import asyncpg
import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import event, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from app.errors import StartupError
from app.settings import Settings
from app.users.models import User
from tests.conftest import Service, execute, serve
from tests.people import join, log_in, register

UNAVAILABLE = {"error": "Service unavailable, try again", "type": "service_unavailable"}


def with_database(settings: Settings, **changes: object) -> Settings:
    """The same settings with another database or other limits."""
    return settings.model_copy(update={"database": settings.database.model_copy(update=changes)})


def out_of_reach(settings: Settings) -> Settings:
    """Settings with a database that nobody serves."""
    return with_database(settings, url=SecretStr("postgresql+asyncpg://user:hunter2@127.0.0.1:1/none"))


async def test_a_database_out_of_reach_is_503(settings: Settings) -> None:
    async with serve(out_of_reach(settings), prepared=True) as service:
        response = await register(service.client)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
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
        ann = await join(service.client)
        async with service.state["read_sessions"]() as session:
            await session.execute(select(1))
            response = await service.client.get("/users/me", headers=ann.auth)
        after = await service.client.get("/users/me", headers=ann.auth)

    assert (response.status_code, response.json()) == (503, UNAVAILABLE)
    assert after.status_code == 200


async def test_as_many_writes_at_once_as_connections_do_not_wait_for_each_other_forever(settings: Settings) -> None:
    async with serve(with_database(settings, pool_size=1, pool_timeout=0.5)) as service:
        ann = await join(service.client)

        response = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert response.status_code == 200


@pytest.fixture
async def deaf_loop() -> AsyncIterator[None]:
    """Lets asyncpg abandon futures: it does where a connection is cancelled before it is made, which harms nobody."""
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)
    yield
    gc.collect()
    loop.set_exception_handler(handler)


# Not on SQLite, whose driver can leave a task that waits for its thread without end.
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("deaf_loop")
async def test_requests_that_are_cancelled_leave_no_connection_behind(settings: Settings) -> None:
    """As when a worker ends before they do; each round cancels them at another moment."""
    async with serve(with_database(settings, pool_size=4)) as service:
        ann = await join(service.client)
        for milliseconds in range(30):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(log_in, service.client)
                    group.start_soon(partial(service.client.get, "/users/me", headers=ann.auth))
                await anyio.sleep(milliseconds / 1000)
                group.cancel_scope.cancel()

        response = await service.client.get("/users/me", headers=ann.auth)
        pool = service.state["engine"].pool

    assert response.status_code == 200
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() == 0


async def test_a_statement_that_waits_too_long_is_503(settings: Settings, session: AsyncSession) -> None:
    """PostgreSQL cancels it; SQLite gives up waiting for the lock."""
    async with serve(with_database(settings, statement_timeout=0.5, connect_timeout=0.5)) as service:
        ann = await join(service.client)
        await session.execute(update(User).values(full_name="locked"))

        during = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})
        await session.rollback()
        after = await service.client.patch("/users/me", headers=ann.auth, json={"full_name": "A"})

    assert (during.status_code, during.json()) == (503, UNAVAILABLE)
    assert after.status_code == 200


async def test_a_statement_that_is_wrong_is_500(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await session.execute(User.metadata.tables["refresh_tokens"].delete())
    connection = await session.connection()
    await connection.exec_driver_sql("ALTER TABLE users RENAME TO elsewhere")
    await session.commit()

    response = await register(client)

    connection = await session.connection()
    await connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO users")
    await session.commit()
    assert response.status_code == 500
    assert response.json() == {"error": "Internal server error", "type": "internal_error"}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_that_the_server_closed_meanwhile_is_replaced(service: Service, database_url: str) -> None:
    opened: list[asyncpg.Connection] = []
    event.listen(
        service.state["engine"].sync_engine, "connect", lambda dbapi, _: opened.append(dbapi.driver_connection)
    )
    ann = await join(service.client)
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
