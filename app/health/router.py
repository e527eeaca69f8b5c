"""Health checks: is the process alive, and should it receive traffic?"""

import asyncio
from typing import Literal

from fastapi import APIRouter
from hitless import is_draining
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.database import CHECK_SCHEMA, DATABASE_ERRORS
from app.dependencies import AppRequest
from app.errors import ServiceUnavailable, responses
from app.limiter import REDIS_SECONDS, RateLimiter

router = APIRouter(prefix="/health", tags=["health"])

# Timeout of the readiness check in seconds. A client that polls every second detects an outage within two seconds.
# Kubernetes' default timeout is also one second.
READY_SECONDS = 1


class DatabaseUnavailable(ServiceUnavailable):
    message = "Database unavailable"


class ShuttingDown(ServiceUnavailable):
    message = "Shutting down"


class Alive(BaseModel):
    """The process responds."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The process can serve requests."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"status": "ready", "database": "connected", "redis": "connected", "mail": "available"},
            ]
        }
    )

    status: Literal["ready"] = "ready"
    database: Literal["connected"] = "connected"
    redis: Literal["connected", "unavailable"] | None = None
    mail: Literal["available", "unavailable"] | None = None


@router.get("", response_description="The process responds", summary="Check liveness")
async def health() -> Alive:
    """Respond like `/health/live`."""
    return Alive()


@router.get("/live", response_description="The process responds", summary="Check liveness")
async def live() -> Alive:
    """Respond with 200 as long as the process is running.

    The check does not use the database, because a database outage must not cause containers to be restarted.
    """
    return Alive()


@router.get(
    "/ready",
    response_model_exclude_none=True,
    responses=responses(DatabaseUnavailable, ShuttingDown),
    response_description="The process can serve requests",
    summary="Check readiness",
)
async def ready(request: AppRequest) -> Ready:
    """Respond with 200 if the process can serve requests.

    The database must contain a migrated schema and respond within a second, and the server must not be shutting down.

    The response contains `redis` if Redis is configured, and `mail` if a mail server is configured. The status is 200
    even if Redis or the mail server is unavailable. Emails then wait, for at most two days.
    """
    if is_draining():
        raise ShuttingDown
    try:
        async with asyncio.timeout(READY_SECONDS), request.state["probe_engine"].connect() as connection:
            await connection.execute(CHECK_SCHEMA)
    except TimeoutError as error:
        request.state["outages"].add(TimeoutError(f"no answer within {READY_SECONDS} s"))
        raise DatabaseUnavailable from error
    except DATABASE_ERRORS as error:
        request.state["outages"].add(error)
        raise DatabaseUnavailable from error
    return Ready(redis=await check_redis(request.state["redis"], request.state["limiter"]), mail=check_mail(request))


async def check_redis(redis: Redis | None, limiter: RateLimiter) -> Literal["connected", "unavailable"] | None:
    """Return the state of Redis, or None if Redis is not configured.

    "connected" means that Redis responds and that the rate limiter can use it.
    """
    if redis is None:
        return None
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await redis.ping()
    except (RedisError, TimeoutError):
        return "unavailable"
    if not limiter.counts_in_redis:
        await limiter.hit("default", "readiness check")  # makes the limiter try Redis again
    return "connected" if limiter.counts_in_redis else "unavailable"


def check_mail(request: AppRequest) -> Literal["available", "unavailable"] | None:
    """Return the state of the mail server as seen by this worker, or None if no mail server is configured."""
    settings = request.state["settings"]
    if not settings.mail or settings.smtp_url is None:
        return None
    return "available" if request.state["mail_sender"].is_available else "unavailable"
