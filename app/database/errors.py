"""Distinguish database outages from bugs."""

import asyncpg
from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint, text
from sqlalchemy.exc import DBAPIError, EmulatedDBAPIException, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database.base import Base


class DatabaseUnreachable(Exception):
    """The service cannot connect to the database, or the database does not answer.

    Raised instead of exceptions such as OSError and TimeoutError, which can also have causes other than the database.
    """


# The exceptions to catch around database calls. `is_outage` distinguishes outages from bugs.
DATABASE_ERRORS = (
    DBAPIError,
    EmulatedDBAPIException,  # the server rejected a new connection
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    PoolTimeoutError,
    DatabaseUnreachable,
)

# This query fails if the database is unavailable or has no tables, for example after it was dropped and recreated.
CHECK_SCHEMA = text("SELECT version_num FROM alembic_version")

# The SQLSTATE that a read-only server, such as a standby, returns when it rejects a write.
READ_ONLY = "25006"
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNAVAILABLE_SQLSTATES = (
    "08",  # connection exception
    "28",  # invalid authorization, for example while the password is being changed
    "3D",  # no such database
    "3F",  # no such schema
    "42501",  # insufficient privilege, for example while a backup is being restored
    "53",  # insufficient resources
    "57",  # operator intervention, for example a cancelled statement or a shutdown
    "58",  # system error
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55000",  # the database does not accept connections
    "55P03",  # lock not available
    READ_ONLY,
)
# https://sqlite.org/rescode.html
_UNAVAILABLE_SQLITE = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
)


def is_unavailable(error: Exception) -> bool:
    """Return whether a database error means that the database is unreachable, full, read-only or too slow."""
    if isinstance(error, PoolTimeoutError | DatabaseUnreachable):
        return True
    if isinstance(getattr(error, "driver_exception", error), asyncpg.InvalidCachedStatementError):
        return True  # a migration changed a column's type; the next attempt prepares the statement again
    cause = getattr(error, "orig", error)
    sqlstate = getattr(cause, "sqlstate", None) or ""
    sqlite_name = getattr(cause, "sqlite_errorname", None) or ""
    return (
        getattr(error, "connection_invalidated", False)
        or sqlstate.startswith(_UNAVAILABLE_SQLSTATES)
        or sqlite_name.startswith(_UNAVAILABLE_SQLITE)
    )


async def is_outage(error: Exception, engine: AsyncEngine, *, is_ongoing: bool) -> bool:
    """Return whether a database error means that the database is unavailable or has no tables.

    All other errors are bugs, for example a query with a misspelled table name.

    Args:
        error: The exception that database code raised.
        engine: Used to check whether the database has tables.
        is_ongoing: Whether an outage is already known to be ongoing. If so, any missing table counts as part of it.
    """
    if is_unavailable(error) or not _is_missing_table(error):
        return is_unavailable(error)
    if is_ongoing:  # the table was missing when the query ran, but may exist again by now
        return True
    try:
        async with engine.connect() as connection:
            await connection.execute(CHECK_SCHEMA)
    except DATABASE_ERRORS:
        return True
    return False


def _is_missing_table(error: Exception) -> bool:
    cause = getattr(error, "orig", error)
    return getattr(cause, "sqlstate", None) == "42P01" or "no such table" in str(cause)


def is_unique_violation(error: IntegrityError, *columns: str) -> bool:
    """Return whether a statement violated the unique constraint or the primary key on the given columns.

    Args:
        error: The exception that the statement raised.
        columns: All columns of the constraint, in the order in which the constraint lists them, for example
            `users.email`.
    """
    table = Base.metadata.tables[columns[0].partition(".")[0]]
    (constraint,) = (
        each
        for each in table.constraints
        if isinstance(each, UniqueConstraint | PrimaryKeyConstraint) and list(map(str, each.columns)) == list(columns)
    )
    return (
        getattr(error.driver_exception, "constraint_name", None) == constraint.name
        or str(error.driver_exception) == f"UNIQUE constraint failed: {', '.join(columns)}"
    )
