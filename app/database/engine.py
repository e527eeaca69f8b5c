"""The engine: how connections are made, and when they are replaced."""

import asyncio
from typing import Any

import asyncpg
from sqlalchemy import event, make_url
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection

from app import NAME
from app.database.errors import READ_ONLY, DatabaseUnreachable
from app.settings import Settings


def create_engine(settings: Settings, *, pool_size: int | None = None) -> AsyncEngine:
    """Create an engine with a bounded pool. Connections are opened when they are first needed.

    There is no overflow: under load, opening and closing connections takes longer than waiting for one.

    Args:
        settings: The URL, the timeouts, and the size of the pool unless `pool_size` is given.
        pool_size: Maximum number of connections.
    """
    options: dict[str, Any] = {
        "poolclass": AsyncAdaptedQueuePool,
        "pool_size": pool_size or settings.database_pool_size,
        "max_overflow": 0,
        "pool_timeout": settings.database_pool_timeout,
        "hide_parameters": True,  # they hold password hashes and addresses, which must not be logged
    }
    if settings.is_sqlite:
        return _create_sqlite_engine(settings, options)
    return _create_postgresql_engine(settings, options)


def database_name(settings: Settings) -> str:
    """Return the database's host and name, without credentials, for messages."""
    url = make_url(settings.database_url.get_secret_value())
    return f"{url.host}:{url.port or 5432}/{url.database}" if url.host else str(url.database)


# PostgreSQL ----------------------------------------------------------------------------------------------------------


def _create_postgresql_engine(settings: Settings, options: dict[str, Any]) -> AsyncEngine:
    statement_timeout = f"{settings.database_statement_timeout:.3f}s"

    async def connect() -> asyncpg.Connection:
        try:
            return await asyncpg.connect(
                settings.database_url.get_secret_value(),
                timeout=settings.database_connect_timeout,
                # The server cancels a slow statement itself. This limit is for a server that does not answer at all.
                command_timeout=settings.database_statement_timeout + 1,
                server_settings={
                    "application_name": NAME,
                    "statement_timeout": statement_timeout,
                    "idle_in_transaction_session_timeout": statement_timeout,
                },
            )
        except OSError as error:  # of a dozen kinds
            raise DatabaseUnreachable(f"cannot connect to the database: {error!r}") from error

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        # Reads run in autocommit. A ROLLBACK after each would cost the round trip that autocommit saves.
        skip_autocommit_rollback=True,
        **options,
    )
    event.listen(engine.sync_engine, "checkout", _replace_if_closed)
    event.listen(engine.sync_engine, "handle_error", _invalidate_if_unusable)
    return engine


def _replace_if_closed(_: DBAPIConnection, record: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
    """Replace a connection that the server closed while it was idle, for example by a restart.

    asyncpg knows without asking the server. `pool_pre_ping` would cost a round trip per checkout.
    """
    driver_connection: asyncpg.Connection = record.driver_connection  # type: ignore[assignment]  # of this engine
    if driver_connection.is_closed():
        raise DisconnectionError


def _invalidate_if_unusable(context: ExceptionContext) -> Exception | None:
    """Invalidate a connection that cannot be used again, so that the pool replaces it.

    After a timeout or a cancelled request, the statement may still run. Ending it in order would mean waiting for it.
    A server that has become read-only may have been replaced: its name may lead to another server by now.
    """
    error = context.original_exception
    if context.connection and isinstance(error, OSError | asyncio.CancelledError):  # TimeoutError is an OSError
        driver_connection: asyncpg.Connection = context.connection.connection.driver_connection  # type: ignore[assignment]
        driver_connection.terminate()
        context.is_disconnect = True
    elif getattr(error, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False  # the other connections can still read
    return DatabaseUnreachable(f"the database does not answer: {error!r}") if isinstance(error, OSError) else None


# SQLite --------------------------------------------------------------------------------------------------------------


def _create_sqlite_engine(settings: Settings, options: dict[str, Any]) -> AsyncEngine:
    engine = create_async_engine(
        settings.database_url.get_secret_value(),
        connect_args={
            "timeout": settings.database_statement_timeout,  # SQLite's statements wait only for locks
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
    """Take SQLite's write lock at the start of a transaction.

    A transaction that reads first and then writes would fail at once if another one has written in between.
    """
    if not connection.get_execution_options().get("autocommit"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


# Both ----------------------------------------------------------------------------------------------------------------


def autocommit(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine, on the same pool, for reading in autocommit: without BEGIN, and on SQLite without a lock."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="AUTOCOMMIT")
    # SQLite's driver would change the isolation level in a thread. This option is read by `_begin_immediate`.
    return engine.execution_options(autocommit=True)
