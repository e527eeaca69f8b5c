"""Create the database engine for PostgreSQL or SQLite."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection

from app.database.postgresql import create_postgresql_engine
from app.database.sqlite import create_sqlite_engine
from app.settings import Settings
from app.urls import describe_database


class CountingPool(AsyncAdaptedQueuePool):
    """A connection pool that counts the tasks waiting for a connection."""

    __module__ = AsyncAdaptedQueuePool.__module__  # SQLAlchemy derives the logger's name from this
    waiting = 0

    def connect(self) -> PoolProxiedConnection:
        self.waiting += 1
        try:
            return super().connect()
        finally:
            self.waiting -= 1


def create_engine(settings: Settings, *, pool_size: int | None = None) -> AsyncEngine:
    """Create an engine with a bounded connection pool. Connections are opened on demand.

    There are no overflow connections. Under load, opening and closing an extra connection takes longer than waiting for
    a free one.

    Args:
        settings: Settings with the URL, the timeouts, and the default for `pool_size`.
        pool_size: Maximum number of connections.
    """
    options: dict[str, Any] = {
        "poolclass": CountingPool,
        "pool_size": pool_size or settings.database_pool_size,
        "max_overflow": 0,
        "pool_timeout": settings.database_pool_timeout,
        "hide_parameters": True,  # parameters contain password hashes and email addresses, which must not be logged
    }
    if settings.is_sqlite:
        return create_sqlite_engine(settings, options)
    return create_postgresql_engine(settings, options)


def database_location(settings: Settings) -> str:
    """Return the database's location without credentials: its hosts and name, or the path of the SQLite file."""
    return describe_database(settings.database_url.get_secret_value())


def autocommit(engine: AsyncEngine) -> AsyncEngine:
    """Return an engine in autocommit mode that shares the connection pool of the given engine.

    In autocommit mode, SQLAlchemy sends no BEGIN. On SQLite, reads therefore do not acquire the write lock (see
    `_begin_immediate`).
    """
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="AUTOCOMMIT")
    # On SQLite, set an option that tells `_begin_immediate` not to begin a transaction. Setting the isolation level
    # would take longer, because the driver does it in a separate thread.
    return engine.execution_options(autocommit=True)
