"""Check and prepare the database before the service starts. Problems are reported in one line."""

import os
import sqlite3
from pathlib import Path

import structlog
from alembic.util import CommandError
from sqlalchemy import text

from app.database import DATABASE_ERRORS, create_engine, database_location
from app.errors import StartupError
from app.migrations import MigrationFailed, is_migration_pending, migrate
from app.settings import Settings

log = structlog.stdlib.get_logger("app")

# The number of connections available to unprivileged roles. `reserved_connections` was added in PostgreSQL 16.
_ALLOWED_CONNECTIONS = text("""
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0)
""")


async def prepare_to_serve(settings: Settings) -> None:
    """Migrate the database, or check that its schema is up to date.

    Warn if SECRET_KEY is not set, because a restart would then invalidate access tokens.

    gunicorn's master calls this function once, before the first fork. Workers do not call it, because a worker that
    starts during an outage would fail and stop the whole server.

    Raises:
        StartupError: The database is unreachable, a migration failed, or the schema is not up to date.
    """
    if "secret_key" not in settings.model_fields_set:
        log.warning(
            "SECRET_KEY is not set: access tokens are signed with a random key, and become invalid when this process"
            " stops"
        )
    await prepare_database(settings)


async def prepare_database(settings: Settings) -> None:
    """Migrate the database if the settings enable this. Otherwise, check that its schema is up to date.

    Raises:
        StartupError: The database is unreachable, a migration failed, or the schema is not up to date.
    """
    engine = create_engine(settings)
    try:
        if settings.is_sqlite:
            create_sqlite_file(settings)
        if settings.migrates_at_startup:
            await migrate(settings)
        elif await is_migration_pending(engine):
            raise StartupError("The database's schema is not up to date: run `python -m app migrate`")
    except MigrationFailed as error:
        raise StartupError(str(error)) from error
    except (*DATABASE_ERRORS, CommandError) as error:
        reason = getattr(error, "orig", None) or error
        raise StartupError(f"The database at {database_location(settings)} cannot be used: {reason}") from error
    finally:
        await engine.dispose()


def create_sqlite_file(settings: Settings) -> None:
    """Create the database file and its directory if they are missing. The driver would report failures less clearly.

    Raises:
        StartupError: The directory or the file cannot be created.
    """
    file = Path(database_location(settings))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sqlite3.connect(file).close()
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"The SQLite database at {file} cannot be opened by user {os.getuid()}: {error}") from error


def connections_per_worker(settings: Settings) -> int:
    """Return the maximum number of database connections per worker: the pool size plus one for the readiness check."""
    return settings.database_pool_size + 1


async def check_connection_limit(settings: Settings, workers: int) -> str | None:
    """Return a warning if the workers may open more connections than the database allows.

    One extra worker is counted, because a replacement starts before the old worker stops. Other clients of the database
    are not counted, so the limit may be exceeded even without a warning.

    Raises:
        StartupError: The database is unreachable.
    """
    if settings.is_sqlite:
        return None
    engine = create_engine(settings)
    try:
        async with engine.connect() as connection:
            allowed: int = (await connection.execute(_ALLOWED_CONNECTIONS)).scalar_one()
    except DATABASE_ERRORS as error:
        raise StartupError(f"The database cannot be used: {getattr(error, 'orig', None) or error}") from error
    finally:
        await engine.dispose()
    per_worker = connections_per_worker(settings)
    if (wanted := (workers + 1) * per_worker) <= allowed:
        return None
    return (
        f"{workers} workers, and one more while one is replaced, may open {wanted} database connections, but the "
        f"database allows {allowed}: "
        f"set DATABASE_POOL_SIZE to at most {max(1, allowed // (workers + 1) - 1)}, or WEB_CONCURRENCY to at most "
        f"{max(1, allowed // per_worker - 1)}, or raise max_connections"
    )
