"""What lives as long as the process: made when it starts, closed when it stops."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from alembic.util import CommandError as MigrationError
from fastapi import FastAPI
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import DATABASE_ERRORS, create_engine, create_sessions
from app.errors import StartupError
from app.limiter import REDIS_SECONDS, RateLimiter
from app.migrations import is_migration_pending, migrate
from app.reader import Reader
from app.security import Passwords, Tokens
from app.settings import AuthSettings, DatabaseSettings, RedisSettings, Settings
from app.state import State

# One for the limiter, which asks for all requests together, one for readiness. Whoever finds none free waits, where
# redis-py's usual pool raises.
REDIS_CONNECTIONS = 2


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    """Runs around the whole life of a worker process."""
    asyncio.get_running_loop().set_exception_handler(ignore_what_was_given_up)
    settings: Settings = app.state.settings
    if not app.state.prepared:
        await prepare(settings)
    # Made here and not at import: an engine from before gunicorn forks would share its connections between workers.
    engine = create_engine(settings.database)
    # Readiness has a connection of its own. If it waited behind the requests, a service with much to do would be taken
    # for one without a database, and its share of the work given to the others.
    probe_engine = create_engine(settings.database.model_copy(update={"pool_size": 1}))
    redis = create_redis(settings.redis)
    auth = settings.auth
    try:
        yield State(
            engine=engine,
            reader=Reader(engine),
            probe=Reader(probe_engine),
            write_sessions=create_sessions(engine),
            redis=redis,
            limiter=create_limiter(settings, redis),
            passwords=create_passwords(auth),
            tokens=Tokens(
                secret_key=auth.secret_key.get_secret_value(),
                access_lifetime=timedelta(minutes=auth.access_token_minutes),
                refresh_lifetime=timedelta(days=auth.refresh_token_days),
            ),
        )
    finally:
        if redis:
            await redis.aclose()
        await probe_engine.dispose()
        await engine.dispose()


def ignore_what_was_given_up(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handles what nobody has waited for; not worth a word is how a connection fails that takes too long to make.

    Drivers give it up, and leave behind what was to become of it. Else each would be logged as an error.
    """
    if not isinstance(context.get("exception"), OSError):
        loop.default_exception_handler(context)


async def prepare(settings: Settings) -> None:
    """Checks, before anything is served, what would otherwise fail in every request; migrates where it is set.

    gunicorn's master calls this once before it forks. A worker that starts later, during an outage, does not: it
    would take the whole server down with it.

    Raises:
        StartupError: the database is out of reach, or not migrated.
    """
    engine = create_engine(settings.database)
    try:
        await _check_database(engine, settings)
    except (*DATABASE_ERRORS, MigrationError) as error:
        reason = getattr(error, "orig", None) or error
        raise StartupError(f"The database at {database_name(settings)} cannot be used: {reason}") from error
    finally:
        await engine.dispose()


async def _check_database(engine: AsyncEngine, settings: Settings) -> None:
    if settings.database.is_sqlite:
        open_sqlite(settings.database)
    if settings.database.migrates_at_start:
        await migrate(settings.database)
    elif await is_migration_pending(engine):
        raise StartupError("The database's schema is not up to date: run `python -m app migrate`")


def open_sqlite(settings: DatabaseSettings) -> None:
    """Makes the database's folder and file. The asynchronous driver would do it in a thread, and fail less clearly.

    Raises:
        StartupError: it cannot be opened.
    """
    file = Path(make_url(settings.url.get_secret_value()).database or "")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sqlite3.connect(file).close()
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"The SQLite database at {file} cannot be opened by user {os.getuid()}: {error}") from error


def database_name(settings: Settings) -> str:
    """The database, without credentials."""
    url = make_url(settings.database.url.get_secret_value())
    return f"{url.host}:{url.port or 5432}/{url.database}" if url.host else str(url.database)


def create_passwords(settings: AuthSettings) -> Passwords:
    """Makes the hasher that the settings describe."""
    return Passwords(
        memory_kib=settings.argon2_memory_kib,
        time_cost=settings.argon2_time_cost,
        parallelism=settings.argon2_parallelism,
    )


def create_limiter(settings: Settings, redis: Redis | None) -> RateLimiter:
    """Makes the limiter that the settings describe."""
    http = settings.http
    return RateLimiter(
        {
            "default": http.rate_limit,
            "login": http.rate_limit_login,
            "account": http.rate_limit_login,
            "register": http.rate_limit_register,
        },
        redis=redis,
        secret_key=settings.auth.secret_key.get_secret_value(),
    )


def create_redis(settings: RedisSettings) -> Redis | None:
    """Makes the client, where Redis is configured; it connects when it is first asked."""
    if settings.url is None:
        return None
    # Redis only helps along, so nobody waits for it: redis-py's defaults are 5 seconds and 10 retries.
    pool = BlockingConnectionPool.from_url(
        settings.url.get_secret_value(),
        max_connections=REDIS_CONNECTIONS,
        timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        socket_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
        # While these are on, redis-py does not notice that a connection in its pool has been closed meanwhile.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return Redis.from_pool(pool)
