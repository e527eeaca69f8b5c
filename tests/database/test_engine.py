"""Database connections have the configured timeouts, and error messages do not contain statement parameters."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app import NAME
from app.database import DatabaseUnreachable, FastReader, create_engine
from app.settings import Settings
from app.users.models import User
from app.users.service import list_users
from tests.conftest import change, make_settings, wait_for_blocked_statement
from tests.people import sign_up
from tests.tcp_proxy import tcp_proxy


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_prepared_statements_of_searches_are_bounded(settings: Settings) -> None:
    """The driver prepares a statement for each distinct search.

    Without a bound, a long-lived connection would accumulate prepared statements.
    """
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


async def read_limit(database_url: str, **settings: object) -> object:
    """Connect to the database, and return the statement timeout that is in effect."""
    engine = create_engine(make_settings(database_url=database_url, **settings))
    try:
        async with engine.connect() as connection:
            return await connection.scalar(text("SHOW statement_timeout"))
    finally:
        await engine.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("query", ["connect_timeout=60&channel_binding=require", "krbsrvname=postgres&gsslib=gssapi"])
async def test_parameters_of_providers_are_not_sent_to_the_server(database_url: str, query: str) -> None:
    assert await read_limit(f"{database_url}?{query}", database_connect_timeout=60) == "5s"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_connect_timeout_of_the_url_overrides_the_setting(database_url: str) -> None:
    url = urlsplit(database_url)
    async with tcp_proxy(url.hostname or "", url.port or 5432) as proxy:
        proxy.delay = 0.2  # longer than `database_connect_timeout` below
        proxy.set_state("slow")
        slow = urlunsplit(url._replace(netloc=f"{url.username}:{url.password}@{proxy.address}"))

        with pytest.raises(DatabaseUnreachable):
            await read_limit(slow, database_connect_timeout=0.1)
        assert await read_limit(f"{slow}?connect_timeout=60", database_connect_timeout=0.1) == "5s"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_service_file_names_the_server(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = urlsplit(database_url)
    (tmp_path / "services").write_text(
        f"[production]\nhost={url.hostname}\nport={url.port or 5432}\nuser={url.username}\npassword={url.password}\n"
        f"dbname={url.path[1:]}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    assert await read_limit("postgresql://?service=production", database_connect_timeout=60) == "5s"


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
