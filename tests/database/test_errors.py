"""Database errors are classified either as outages, which return 503, or as bugs, which return 500."""

import os
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.database.errors import is_unavailable


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
        # The list keeps each result open, and so its table locked, while the next statement runs.
        [await session.stream(text(statement)) for statement in statements]

    name = getattr(caught.value.orig, "sqlite_errorname", None)
    assert (name, is_unavailable(caught.value)) == expected


def test_cached_statement_invalidated_by_a_migration_is_an_outage() -> None:
    assert is_unavailable(asyncpg.InvalidCachedStatementError("cached statement plan is invalid"))
