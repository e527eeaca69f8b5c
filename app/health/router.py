"""The probes: is the process alive, and should it be given traffic."""

import asyncio
from operator import attrgetter
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError
from sqlalchemy import select

from app.database import DATABASE_ERRORS, is_unavailable
from app.errors import InternalError, PayloadTooLarge, ServiceUnavailable, responses
from app.limiter import REDIS_SECONDS
from app.server.drain import is_draining
from app.state import AppRequest

router = APIRouter(
    prefix="/health",
    tags=["health"],
    responses=responses(PayloadTooLarge, InternalError),
    generate_unique_id_function=attrgetter("name"),  # the application's is for routers that are included
)

# So that an outage shows within two seconds to whoever asks each second; and it is Kubernetes' own patience.
READY_SECONDS = 1
_NOTHING = select(1)


class DatabaseUnavailable(ServiceUnavailable):
    message = "Database unavailable"


class ShuttingDown(ServiceUnavailable):
    message = "Shutting down"


class Alive(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The process can serve."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"status": "ready", "database": "connected", "redis": "connected"}]}
    )

    status: Literal["ready"] = "ready"
    database: Literal["connected"] = "connected"
    redis: Literal["connected", "unavailable"] | None = None


# The same answer each time is made once: that is a tenth of all that the request takes.
_ALIVE = Response(Alive().model_dump_json(), media_type="application/json")


@router.get("", response_model=Alive, response_description="Alive", summary="Is the process alive?")
async def health() -> Response:
    """The same as `/health/live`."""
    return _ALIVE


@router.get("/live", response_model=Alive, response_description="Alive", summary="Is the process alive?")
async def live() -> Response:
    """Answers as long as the process does. Touches nothing outside of it, so a failing database restarts nobody."""
    return _ALIVE


@router.get(
    "/ready",
    response_model_exclude_none=True,
    responses=responses(DatabaseUnavailable, ShuttingDown),
    response_description="Ready",
    summary="Can the service do its work?",
)
async def ready(request: AppRequest) -> Ready:
    """Answers 200 when the database answers a query within a second, and the server is not about to end.

    `redis` is there where Redis is configured; the service works without it.
    """
    if is_draining():
        raise ShuttingDown
    try:
        async with asyncio.timeout(READY_SECONDS):
            await request.state["probe"].first(_NOTHING)
    except (TimeoutError, *DATABASE_ERRORS) as error:
        if not isinstance(error, TimeoutError) and not is_unavailable(error):
            raise
        raise DatabaseUnavailable from error

    redis = request.state["redis"]
    if redis is None:
        return Ready()
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await redis.ping()
    except (RedisError, TimeoutError):
        return Ready(redis="unavailable")
    return Ready(redis="connected")
