"""Create the objects that live as long as the process, and close them at shutdown."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from fastapi import FastAPI
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import FastReader, OutageLog, autocommit, create_engine
from app.limiter import REDIS_SECONDS, RateLimiter
from app.mail.outbox import Outbox
from app.mail.sender import Sender
from app.security import Passwords, Tokens
from app.settings import Settings
from app.startup import prepare_to_serve

# Maximum number of connections to Redis: one for the rate limiter, which sends one command at a time, and one for the
# readiness check.
REDIS_CONNECTIONS = 2


class State(TypedDict):
    """The state that the lifespan yields. Its items are accessed by key, for example `request.state["redis"]`."""

    settings: Settings
    engine: AsyncEngine
    read_engine: AsyncEngine
    fast_reader: FastReader
    probe_engine: AsyncEngine
    redis: Redis | None
    limiter: RateLimiter
    outbox: Outbox
    mail_sender: Sender
    passwords: Passwords
    tokens: Tokens
    outages: OutageLog


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    """Create the objects in `State` at startup, and close their connections at shutdown."""
    asyncio.get_running_loop().set_exception_handler(ignore_abandoned_connections)
    settings: Settings = app.state.settings
    if not app.state.is_database_prepared:  # gunicorn.conf.py may have prepared it, once for all workers
        await prepare_to_serve(settings)
    # Create the engine here instead of at import time: gunicorn forks its workers after the import, and they must not
    # share connections.
    engine = create_engine(settings)
    # Give the readiness check its own connection. If it shared a pool with requests, it would have to wait for a free
    # connection when the worker is busy, and would report the database as unavailable.
    probe_engine = create_engine(settings, pool_size=1)
    redis = create_redis(settings)
    limiter = RateLimiter(settings, redis, app.state.rate_counters)
    outbox = Outbox({kind: write for writers in app.state.mail_writers for kind, write in writers(settings).items()})
    fast_reader = FastReader(engine, settings)
    outages = OutageLog(settings, fast_reader)
    mail_sender = Sender(settings, engine, outbox, limiter, outages)
    try:
        async with mail_sender.run():
            yield State(
                settings=settings,
                engine=engine,
                read_engine=autocommit(engine),
                fast_reader=fast_reader,
                probe_engine=autocommit(probe_engine),
                redis=redis,
                limiter=limiter,
                outbox=outbox,
                mail_sender=mail_sender,
                passwords=Passwords(settings),
                tokens=Tokens(settings),
                outages=outages,
            )
    finally:
        if redis:
            await redis.aclose()
        await probe_engine.dispose()
        await engine.dispose()


def create_redis(settings: Settings) -> Redis | None:
    """Return a Redis client, or None if Redis is not configured. The client connects on first use."""
    if settings.redis_url is None:
        return None
    # Limit each wait to REDIS_SECONDS: for a free connection, to connect, and for an answer. By default, these take
    # up to 20, 5 and 5 seconds.
    pool = BlockingConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        max_connections=REDIS_CONNECTIONS,
        timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        socket_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
        # Disable maintenance notifications. When they are enabled, redis-py does not notice that a connection in its
        # pool has been closed.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return Redis.from_pool(pool)


def ignore_abandoned_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore connection attempts that a driver abandoned after a timeout; report every other unhandled exception.

    asyncio passes an abandoned attempt to this handler as a plain future (not a task) that failed with an OSError.
    Failed tasks are not ignored, because they may belong to the application.
    """
    future, error = context.get("future"), context.get("exception")
    if future is None or isinstance(future, asyncio.Task) or not isinstance(error, OSError):
        loop.default_exception_handler(context)
