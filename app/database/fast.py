"""A fast path for the few queries that run in almost every request.

SQLAlchemy compiles a query once, and asyncpg runs it directly from then on. Reading a user by id takes 0.10 ms of CPU
time this way, 0.20 ms with SQLAlchemy Core, and 0.44 ms with a session that returns an object.

The fast path has drawbacks: results are rows instead of objects, no SQLAlchemy events are emitted, and queries must be
defined once, with `bindparam`. On SQLite, SQLAlchemy Core runs all queries. On PostgreSQL, it runs the queries that
asyncpg cannot run, for example because SQLAlchemy must convert a type.

Use this module only for queries that stand out in a profile, and `ReadSession` for all others.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import asyncpg
from sqlalchemy import Boolean, Numeric, Select
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection

from app.database.engine import CountingPool, autocommit
from app.database.errors import DatabaseUnreachable
from app.database.postgresql import get_driver_connection, needs_cancel
from app.settings import Settings

# Maximum number of compiled queries in the cache.
CACHE_SIZE = 500
# Maximum time in seconds to wait for a connection pooler such as PgBouncer to cancel a statement.
CANCEL_SECONDS = 1.0

Query = Select[*tuple[Any, ...]]
Row = Iterable[Any]


class CompiledQuery(NamedTuple):
    """A query compiled for asyncpg.

    Attributes:
        sql: The statement.
        names: The names of its parameters, in order.
        defaults: Values of parameters that callers may omit. They come from literals in the query, for example the 10
            in `.limit(10)`, and from the defaults of `bindparam`.
    """

    sql: str
    names: Sequence[str]
    defaults: Mapping[str, object]


class CountingSemaphore(asyncio.Semaphore):
    """A semaphore that counts the tasks waiting for it."""

    waiting = 0

    async def acquire(self) -> Literal[True]:
        self.waiting += 1
        try:
            return await super().acquire()
        finally:
            self.waiting -= 1


class FastReader:
    """Runs single SELECT statements in autocommit mode.

    The number of concurrent queries is limited to the size of the pool. Further queries are queued in order of
    arrival. The pool itself does not guarantee this order (https://github.com/sqlalchemy/sqlalchemy/issues/7679).
    """

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = autocommit(engine)
        self._slots = CountingSemaphore(settings.database_pool_size)
        self._timeout = settings.database_pool_timeout
        self._compiled = lru_cache(maxsize=CACHE_SIZE)(self._compile)

    @property
    def waiting(self) -> int:
        """The number of queries and sessions that are waiting for a connection."""
        return self._slots.waiting + cast("CountingPool", self._engine.pool).waiting

    async def fetch_one(self, query: Query, **parameters: object) -> Row | None:
        """Return the first row, or None if there are no rows."""
        rows = await self.fetch_all(query, **parameters)
        return rows[0] if rows else None

    async def fetch_all(self, query: Query, **parameters: object) -> Sequence[Row]:
        """Return all rows. Define the query at module level, with `bindparam`, so that it is compiled only once.

        Raises:
            KeyError: A parameter of a query for asyncpg is missing.
            StatementError: A parameter is missing, and SQLAlchemy runs the query, for example on SQLite.
        """
        compiled = self._compiled(query)
        try:
            async with asyncio.timeout(self._timeout) as waiting, self._slots:
                if compiled:
                    values = {**compiled.defaults, **parameters}
                    arguments = [values[name] for name in compiled.names]
                    raw_connection = await self._engine.raw_connection()
                    waiting.reschedule(None)
                    return await _fetch(raw_connection, compiled.sql, arguments)
                async with self._engine.connect() as connection:
                    waiting.reschedule(None)
                    return (await connection.execute(query, parameters)).all()
        except TimeoutError as error:  # no connection was free; the driver's timeouts raise DatabaseUnreachable
            raise PoolTimeoutError(f"no connection was free for {self._timeout:g} s") from error

    def _compile(self, query: Query) -> CompiledQuery | None:
        """Compile a query for asyncpg, or return None if only SQLAlchemy can run it."""
        dialect = self._engine.dialect
        if dialect.name != "postgresql":
            return None
        for column in query.selected_columns:
            if isinstance(column.type, Numeric) or column.type.dialect_impl(dialect).result_processor(dialect, None):
                return None
        compiled = query.compile(dialect=dialect)
        for bind in compiled.binds.values():
            # If SQLAlchemy must convert a value, the query cannot be passed directly to asyncpg. Booleans are an
            # exception: SQLAlchemy only validates them, and asyncpg converts them.
            converts = bind.type.dialect_impl(dialect).bind_processor(dialect) and not isinstance(bind.type, Boolean)
            if bind.expanding or bind.literal_execute or bind.callable or converts:
                return None
        defaults = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
        return CompiledQuery(str(compiled), compiled.positiontup or (), defaults)


async def _fetch(connection: PoolProxiedConnection, sql: str, values: list[object]) -> Sequence[Row]:
    driver_connection = get_driver_connection(connection)
    try:
        return await driver_connection.fetch(sql, *values)
    except asyncpg.PostgresError:
        raise
    except BaseException as error:
        is_lost = driver_connection.is_closed() or isinstance(error, OSError)
        # The statement may still be running, so close the connection instead of returning it to the pool.
        if needs_cancel(connection, error):
            with contextlib.suppress(OSError):  # the pooler does not answer
                await driver_connection.close(timeout=CANCEL_SECONDS)
        driver_connection.terminate()
        connection.invalidate(error)
        if is_lost and isinstance(error, Exception):
            raise DatabaseUnreachable(f"the database does not answer: {error!r}") from error
        raise
    finally:
        connection.close()
