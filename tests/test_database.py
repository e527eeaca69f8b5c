"""Sessions and connections are what the routes rely on."""

import asyncio
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Message, Receive, Scope, Send

from app import NAME
from app.database import create_engine, is_unavailable
from app.lifespan import State, lifespan
from app.main import create_app
from app.settings import Settings
from app.users.models import User
from app.users.service import list_users
from tests.conftest import change, wait_for_blocked_statement
from tests.people import register, sign_up


async def test_a_write_is_committed_before_its_response_begins(settings: Settings) -> None:
    app = create_app(settings)
    stored: list[int | None] = []
    async with lifespan(app) as state:

        async def watch(scope: Scope, receive: Receive, send: Send) -> None:
            async def count_and_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    row = await state["reader"].first(select(func.count()).select_from(User))
                    stored.extend(row or [None])
                await send(message)

            await app({**scope, "state": {**state}}, receive, count_and_send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(watch), base_url="http://test") as client:
            await register(client)
            await register(client, "bob@example.com")

    assert stored == [1, 2]


async def test_what_fails_is_rolled_back(client: httpx.AsyncClient, state: State) -> None:
    ann = await sign_up(client)
    await register(client, "bob@example.com")

    taken = await client.patch("/users/me", headers=ann.auth, json={"full_name": "A", "email": "bob@example.com"})

    assert taken.status_code == 400
    row = await state["reader"].first(select(User.full_name).where(User.id == ann.id))
    assert row == ("Ann",)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("parameter", ["", "?prepared_statement_cache_size=0"])
async def test_behind_pgbouncer_nothing_is_prepared(settings: Settings, parameter: str) -> None:
    url = SecretStr(settings.database.url.get_secret_value() + parameter)
    engine = create_engine(settings.database.model_copy(update={"url": url, "pool_size": 1}))
    for _ in range(2):
        await Reader(engine).first(select(User.id))
        async with engine.connect() as connection:
            prepared = await connection.scalar(
                text("SELECT count(*) FROM pg_prepared_statements WHERE statement <> ''")
            )
    await engine.dispose()

    assert (prepared == 0) is bool(parameter)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_what_is_prepared_for_searches_is_forgotten_again(settings: Settings) -> None:
    """Each of them is a statement of its own, and a connection lasts."""
    engine = create_engine(change(settings, database_pool_size=1))
    for number in range(250):
        await list_users(Reader(engine), limit=1, before=None, search=f"name {number}", is_active=None)
    async with engine.connect() as connection:
        prepared = await connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    await engine.dispose()

    assert 0 < prepared < 150


async def test_the_server_knows_who_connects_and_for_how_long(session: AsyncSession, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        mode = await session.scalar(text("PRAGMA journal_mode"))
        keys = await session.scalar(text("PRAGMA foreign_keys"))
        assert (mode, keys) == ("wal", 1)
    else:
        name = await session.scalar(text("SHOW application_name"))
        statement = await session.scalar(text("SHOW statement_timeout"))
        idle = await session.scalar(text("SHOW idle_in_transaction_session_timeout"))
        assert (name, statement, idle) == (NAME, "5s", "5s")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sqlite_waits_for_a_lock_as_long_as_a_statement_may_take(settings: Settings) -> None:
    engine = create_engine(change(settings, database_statement_timeout=1.5))
    async with engine.connect() as connection:
        milliseconds = await connection.scalar(text("PRAGMA busy_timeout"))
    await engine.dispose()

    assert milliseconds == 1500


async def test_a_write_waits_for_a_lock_that_is_soon_released(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str
) -> None:
    ann = await sign_up(client)
    await session.execute(update(User).values(full_name="locked"))

    write = asyncio.create_task(client.patch("/users/me", headers=ann.auth, json={"full_name": "A"}))
    await wait_for_blocked_statement(database_url)
    await session.rollback()

    assert (await write).status_code == 200


async def test_a_statement_that_fails_does_not_tell_its_parameters(session: AsyncSession) -> None:
    with pytest.raises(DBAPIError) as caught:
        await session.execute(text("SELECT * FROM nowhere WHERE email = :email"), {"email": "ann@example.com"})

    assert "FROM nowhere" in str(caught.value)
    assert "ann@example.com" not in str(caught.value)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("statements", "verdict"),
    [
        (["SELECT * FROM sqlite_master", "DROP TABLE users"], ("SQLITE_LOCKED", True)),
        (["PRAGMA max_page_count = 1", "CREATE TABLE large AS SELECT randomblob(1000000)"], ("SQLITE_FULL", True)),
        (["ATTACH 'fifo' AS other"], ("SQLITE_IOERR_READ", True)),
        (["ATTACH '.' AS other"], ("SQLITE_CANTOPEN", True)),
        (["PRAGMA query_only = ON", "DELETE FROM users"], ("SQLITE_READONLY", True)),
        (["SELECT * FROM nowhere"], ("SQLITE_ERROR", False)),
        (["INSERT INTO users (id) VALUES (1)"], ("SQLITE_CONSTRAINT_NOTNULL", False)),
    ],
)
async def test_what_sqlite_says_is_an_outage_or_a_bug(
    session: AsyncSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    statements: list[str],
    verdict: tuple[str, bool],
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")  # can be opened, but not read as a file

    with pytest.raises(DBAPIError) as caught:
        # The list keeps a result open, and the table locked, until the next statement.
        [await session.stream(text(statement)) for statement in statements]

    name = getattr(caught.value.orig, "sqlite_errorname", None)
    assert (name, is_unavailable(caught.value)) == verdict


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5))])
async def test_a_moment_comes_back_as_it_was_and_in_utc(session: AsyncSession, zone: timezone) -> None:
    moment = datetime(2026, 1, 15, 10, 30, 0, 123456, zone)
    session.add(User(email="ann@example.com", full_name="Ann", password_hash="none", created_at=moment))
    await session.commit()

    stored = await session.scalar(select(User.created_at))

    assert stored == moment
    assert stored is not None
    assert stored.utcoffset() == timedelta()
