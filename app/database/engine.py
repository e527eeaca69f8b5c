"""The engine, on PostgreSQL or SQLite."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection

from app.database.postgresql import create_postgresql_engine
from app.database.sqlite import create_sqlite_engine
from app.settings import Settings
from app.urls import describe_database


class CountingPool(AsyncAdaptedQueuePool):
    """A pool that counts its waiters."""

    __module__ = AsyncAdaptedQueuePool.__module__  # SQLAlchemy names the logger after it
    waiting = 0

    def connect(self) -> PoolProxiedConnection:
        self.waiting += 1
        try:
            return super().connect()
        finally:
            self.waiting -= 1


def create_engine(settings: Settings, *, pool_size: int | None = None) -> AsyncEngine:
    """Create an engine with a bounded pool. Connections are opened when they are first needed.

    There is no overflow: under load, opening and closing connections takes longer than waiting for one.

    Args:
        settings: The URL, the timeouts, and the size of the pool unless `pool_size` is given.
        pool_size: Maximum number of connections.
    """
    options: dict[str, Any] = {
        "poolclass": CountingPool,
        "pool_size": pool_size or settings.database_pool_size,
        "max_overflow": 0,
        "pool_timeout": settings.database_pool_timeout,
        "hide_parameters": True,  # they hold password hashes and addresses, which must not be logged
    }
    if settings.is_sqlite:
        return create_sqlite_engine(settings, options)
    return create_postgresql_engine(settings, options)


def database_location(settings: Settings) -> str:
    """Return the hosts and the name of the database, or the path of its file, without credentials."""
    return describe_database(settings.database_url.get_secret_value())


def autocommit(engine: AsyncEngine) -> AsyncEngine:
    """Return an engine that shares the pool but reads in autocommit: without BEGIN, and on SQLite without a lock."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="AUTOCOMMIT")
    # SQLite's driver would change the isolation level in a thread. This option is read by `_begin_immediate`.
    return engine.execution_options(autocommit=True)
