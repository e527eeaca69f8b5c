"""Database errors are classified either as outages, which return 503, or as bugs, which return 500."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import Column, Insert, Integer, Table, UniqueConstraint, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import Base, utc_now
from app.database.errors import is_unavailable, is_unique_violation
from app.users.models import Login, User


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
        ("40002", False),  # violated deferred constraint
        ("42P01", False),  # undefined table
        ("XX000", False),  # internal error
    ],
)
async def test_postgresql_error_is_classified_by_sqlstate(
    session: AsyncSession, sqlstate: str, unavailable: bool
) -> None:
    with pytest.raises(DBAPIError) as caught:
        await session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"))

    assert is_unavailable(caught.value) == unavailable


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("statements", "expected"),
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
async def test_sqlite_error_is_classified_by_name(
    session: AsyncSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    statements: list[str],
    expected: tuple[str, bool],
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")  # a FIFO can be opened, but is not a database file

    with pytest.raises(DBAPIError) as caught:
        # Keep every result in a list, so that results stay open and tables stay locked while the next statement runs.
        [await session.stream(text(statement)) for statement in statements]

    name = getattr(caught.value.orig, "sqlite_errorname", None)
    assert (name, is_unavailable(caught.value)) == expected


LOGIN = insert(Login).values(
    login_id=UUID(int=1), user_id=99, security_stamp=UUID(int=1), secret_hash=b"", expires_at=utc_now()
)


def add_user(email: str, **values: object) -> Insert:
    return insert(User).values(email=email, full_name="Ann", password_hash="", **values)


@pytest.mark.parametrize(
    ("statement", "violated"),
    [
        (add_user("ann@example.com"), "users.email"),
        (add_user("bob@example.com", id=99), "users.id"),
        (LOGIN, "refresh_tokens.family"),
        (add_user("Bob@example.com"), None),  # violates a check constraint of the same column
    ],
)
async def test_unique_violation_is_that_of_its_columns(
    session: AsyncSession, statement: Insert, violated: str | None
) -> None:
    await session.execute(add_user("ann@example.com", id=99))
    await session.execute(LOGIN)

    with pytest.raises(IntegrityError) as caught:
        await session.execute(statement)

    columns = ["users.email", "users.id", "refresh_tokens.family"]
    assert [column for column in columns if is_unique_violation(caught.value, column)] == [violated] * bool(violated)


@pytest.fixture
async def seats(session: AsyncSession) -> AsyncIterator[Table]:
    """A table with constraints on two columns. It exists until the session is rolled back."""
    columns = [Column(name, Integer, primary_key=name != "guest") for name in ("room", "seat", "guest")]
    table = Table("seats_in_a_test", Base.metadata, *columns, UniqueConstraint("room", "guest"))
    await (await session.connection()).run_sync(table.create)
    yield table
    Base.metadata.remove(table)


@pytest.mark.parametrize(("row", "violated"), [((1, 1, 2), ["room", "seat"]), ((1, 2, 1), ["room", "guest"])])
async def test_unique_violation_of_several_columns_is_recognized(
    session: AsyncSession, seats: Table, row: tuple[int, int, int], violated: list[str]
) -> None:
    await session.execute(seats.insert().values((1, 1, 1)))

    with pytest.raises(IntegrityError) as caught:
        await session.execute(seats.insert().values(row))

    for columns in ["room", "seat"], ["room", "guest"]:
        names = [f"seats_in_a_test.{column}" for column in columns]
        assert is_unique_violation(caught.value, *names) == (columns == violated)


def test_cached_statement_invalidated_by_a_migration_is_an_outage() -> None:
    assert is_unavailable(asyncpg.InvalidCachedStatementError("cached statement plan is invalid"))
