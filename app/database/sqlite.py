"""The engine for SQLite, the embedded database."""

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.settings import Settings


def create_sqlite_engine(settings: Settings, options: dict[str, Any]) -> AsyncEngine:
    """Create an SQLite engine. `options` are passed on to `create_async_engine`."""
    engine = create_async_engine(
        settings.database_url.get_secret_value(),
        connect_args={
            "timeout": settings.database_statement_timeout,  # on SQLite, statements wait only for locks
            "isolation_level": None,  # SQLAlchemy begins the transactions, not the driver
        },
        **options,
    )
    event.listen(engine.sync_engine, "connect", _set_sqlite_pragmas)
    event.listen(engine.sync_engine, "begin", _begin_immediate)
    return engine


def _set_sqlite_pragmas(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not block each other
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    """Acquire SQLite's write lock at the start of a transaction.

    Otherwise, a transaction that reads before it writes would fail immediately if another transaction had written
    between the read and the write.
    """
    if not connection.get_execution_options().get("autocommit"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
