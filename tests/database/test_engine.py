"""The engine's connections have the configured timeouts, and their errors contain no parameters."""

import asyncio

import httpx
import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app import NAME
from app.database import FastReader, create_engine
from app.settings import Settings
from app.users.models import User
from app.users.service import list_users
from tests.conftest import change, wait_for_blocked_statement
from tests.people import sign_up


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_prepared_statements_of_searches_are_bounded(settings: Settings) -> None:
    """Each search is a statement of its own, which the driver prepares, and a connection is used for a long time."""
    one_connection = change(settings, database_pool_size=1)
    engine = create_engine(one_connection)
    reader = FastReader(engine, one_connection)
    for number in range(250):
        await list_users(reader, limit=1, after=None, search=f"name {number}", is_active=None)
    async with engine.connect() as connection:
        prepared = await connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    await engine.dispose()

    assert 0 < prepared < 150


async def test_pool_does_not_log(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine(settings)
    async with engine.connect():
        pass
    await engine.dispose()

    assert caplog.messages == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_postgresql_connection_has_a_name_and_timeouts(session: AsyncSession) -> None:
    name = await session.scalar(text("SHOW application_name"))
    statement = await session.scalar(text("SHOW statement_timeout"))
    idle = await session.scalar(text("SHOW idle_in_transaction_session_timeout"))

    assert (name, statement, idle) == (NAME, "5s", "5s")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_connection_uses_wal_and_foreign_keys(session: AsyncSession) -> None:
    mode = await session.scalar(text("PRAGMA journal_mode"))
    keys = await session.scalar(text("PRAGMA foreign_keys"))

    assert (mode, keys) == ("wal", 1)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_waits_for_locks_until_the_statement_timeout(settings: Settings) -> None:
    engine = create_engine(change(settings, database_statement_timeout=1.5))
    async with engine.connect() as connection:
        milliseconds = await connection.scalar(text("PRAGMA busy_timeout"))
    await engine.dispose()

    assert milliseconds == 1500


async def test_write_waits_for_a_lock_that_is_soon_released(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str
) -> None:
    ann = await sign_up(client)
    await session.execute(update(User).values(full_name="locked"))

    write = asyncio.create_task(client.patch("/users/me", headers=ann.auth, json={"full_name": "A"}))
    await wait_for_blocked_statement(database_url)
    await session.rollback()

    assert (await write).status_code == 200


async def test_statement_error_contains_no_parameters(session: AsyncSession) -> None:
    with pytest.raises(DBAPIError) as caught:
        await session.execute(text("SELECT * FROM nowhere WHERE email = :email"), {"email": "ann@example.com"})

    assert "FROM nowhere" in str(caught.value)
    assert "ann@example.com" not in str(caught.value)
