"""The database: how models are declared, how connections are made, and the sessions that requests use."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import asyncpg
from fastapi import Depends
from sqlalchemy import DateTime, MetaData, event, make_url
from sqlalchemy.engine import Connection, Dialect, ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, EmulatedDBAPIException, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.types import TypeDecorator

from app import NAME
from app.pool import FairPool
from app.reader import DatabaseUnreachable, Reader
from app.settings import DatabaseSettings
from app.state import AppRequest


def utc_now() -> datetime:
    """The present moment, aware of its time zone."""
    return datetime.now(UTC)


class _SQLiteDateTime(TypeDecorator[datetime]):
    """SQLite stores no time zone: what goes in is turned to UTC, what comes out says so."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """The parent of every model. Its naming convention gives each constraint a name that migrations can rely on."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: DateTime(timezone=True).with_variant(_SQLiteDateTime(), "sqlite")}


def create_engine(settings: DatabaseSettings) -> AsyncEngine:
    """Creates the engine; connections are opened by the first who needs one.

    The pool is bounded: workers x pool_size, and one each for readiness, is all that the database ever sees. There is
    no overflow, since opening and closing connections under load costs more than waiting for one.
    """
    url = make_url(settings.url.get_secret_value())
    connect_args: dict[str, Any] = {}
    if settings.is_sqlite:
        connect_args["timeout"] = settings.statement_timeout  # what waits on SQLite is a statement, for a lock
        connect_args["isolation_level"] = None  # the driver leaves it to us to begin transactions
    else:
        # That is SQLAlchemy's own cache; behind PgBouncer the driver's has to go too.
        if url.query.get("prepared_statement_cache_size") == "0":
            connect_args["statement_cache_size"] = 0
        connect_args |= {
            "async_creator_fn": _connect,
            "timeout": settings.connect_timeout,
            # The server ends a statement that is too slow. The driver's own limit, a little later, is for a
            # server that does not answer at all.
            "command_timeout": settings.statement_timeout + 1,
            "server_settings": {
                "application_name": NAME,
                "statement_timeout": f"{settings.statement_timeout:.3f}s",
                "idle_in_transaction_session_timeout": f"{settings.statement_timeout:.3f}s",
            },
        }
    engine = create_async_engine(
        url,
        connect_args=connect_args,
        poolclass=FairPool,
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.pool_timeout,
        # Reads run in autocommit; a ROLLBACK after each would cost the round trip that this saves. SQLite has no round
        # trips, and would be taken to be in autocommit always.
        skip_autocommit_rollback=not settings.is_sqlite,
        # Parameters hold hashes and addresses, which belong in no log.
        hide_parameters=True,
    )
    if settings.is_sqlite:
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
    else:
        event.listen(engine.sync_engine, "checkout", _replace_closed)
        event.listen(engine.sync_engine, "handle_error", _abandon)
    return engine


async def _connect(*args: Any, **kwargs: Any) -> asyncpg.Connection:  # noqa: ANN401  handed on as they come
    try:
        return await asyncpg.connect(*args, **kwargs)
    except OSError as error:
        # An unreachable server comes as any of a dozen kinds of OSError; from here on it is of one kind.
        raise DatabaseUnreachable(f"cannot connect to the database: {error!r}") from error


def _replace_closed(_: DBAPIConnection, record: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
    """Has the pool replace a connection that the server closed while it lay there, as when the server restarts.

    asyncpg knows without asking: a ping for each checkout would cost a round trip.
    """
    driver_connection: asyncpg.Connection = record.driver_connection  # type: ignore[assignment]  # known by its engine
    if driver_connection.is_closed():
        raise DisconnectionError


def _abandon(context: ExceptionContext) -> Exception | None:
    """Has the pool replace a connection that is of no use any more.

    Where the server has not answered in time, or nobody waits for its answer, the statement and the connection are not
    ended in order: that would be waiting for it once more. A server that refuses to write may be one that was replaced:
    its name leads to another by now.
    """
    error = context.original_exception
    if context.connection and isinstance(error, OSError | asyncio.CancelledError):  # TimeoutError is an OSError
        driver_connection: asyncpg.Connection = context.connection.connection.driver_connection  # type: ignore[assignment]
        driver_connection.terminate()
        context.is_disconnect = True
    elif getattr(error, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False  # the others can read
    return DatabaseUnreachable(f"the database does not answer: {error!r}") if isinstance(error, OSError) else None


def _prepare_sqlite(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not block each other
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    """Takes SQLite's write lock at the start.

    A transaction that begins by reading and then writes would fail where another wrote in between, with no waiting.
    """
    if not connection.get_execution_options().get("autocommit"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def create_sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """What makes the sessions for writing, each of them one transaction."""
    return async_sessionmaker(engine, expire_on_commit=False, autoflush=False)


async def _reader(request: AppRequest) -> Reader:
    return request.state["reader"]


async def _write_session(request: AppRequest) -> AsyncIterator[AsyncSession]:
    async with request.state["write_sessions"]() as session:  # closing rolls back what is not committed
        yield session
        await session.commit()


ReaderDep = Annotated[Reader, Depends(_reader)]
# scope="function" ends the dependency before the response is sent: a 2xx means committed.
WriteSession = Annotated[AsyncSession, Depends(_write_session, scope="function")]


def is_unique_violation(error: IntegrityError, column: str) -> bool:
    """Whether the unique constraint of a column, given as `table.column`, refused the row."""
    constraint = f"uq_{column.replace('.', '_')}"  # PostgreSQL gives the name, by the convention above
    return (
        getattr(error.driver_exception, "constraint_name", None) == constraint
        or str(error.driver_exception) == f"UNIQUE constraint failed: {column}"
    )


_READ_ONLY = "25006"
# https://www.postgresql.org/docs/current/errcodes-appendix.html: connection exception, invalid authorization (while the
# password is changed), insufficient resources, operator intervention (a cancelled statement, a shutdown), system error,
# serialization failure, deadlock, lock not available, read-only transaction.
_UNAVAILABLE_SQLSTATES = ("08", "28", "53", "57", "58", "40001", "40P01", "55P03", _READ_ONLY)
# https://sqlite.org/rescode.html
_UNAVAILABLE_SQLITE = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
)


# What a failing database raises; of the first four only those that `is_unavailable` knows.
DATABASE_ERRORS = (
    DBAPIError,
    EmulatedDBAPIException,  # what the server answers to a new connection
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    PoolTimeoutError,
    DatabaseUnreachable,
)


def is_unavailable(error: Exception) -> bool:
    """Whether one of DATABASE_ERRORS says that the database is away, full, read-only or slow: not asked wrongly."""
    if isinstance(error, PoolTimeoutError | DatabaseUnreachable):
        return True
    cause = getattr(error, "orig", error)
    if isinstance(getattr(error, "driver_exception", error), asyncpg.InvalidCachedStatementError):
        return True  # a migration changed a type meanwhile; the next try prepares the statement anew
    sqlstate = getattr(cause, "sqlstate", None) or ""
    sqlite_name = getattr(cause, "sqlite_errorname", None) or ""
    return (
        getattr(error, "connection_invalidated", False)
        or sqlstate.startswith(_UNAVAILABLE_SQLSTATES)
        or sqlite_name.startswith(_UNAVAILABLE_SQLITE)
    )
