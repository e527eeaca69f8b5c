"""The probes: is the process alive, and should it be given traffic."""

import asyncio
from collections.abc import Callable, Coroutine
from inspect import signature
from operator import attrgetter
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError
from sqlalchemy import select

from app.database import DATABASE_ERRORS, is_unavailable
from app.errors import InternalError, PayloadTooLarge, ServiceUnavailable, responses, warn_of_outage
from app.limiter import REDIS_SECONDS
from app.server.drain import is_draining
from app.state import AppRequest


class _ProbeRoute(APIRoute):
    """Calls the function with the request and nothing else, and takes its response as it is.

    Looking for parameters takes FastAPI a quarter of all that a probe takes, and probes have none. What a route says of
    its response, as `response_model`, is for the documentation only.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        if len(signature(self.endpoint).parameters) != 1 or self.dependant.dependencies:
            raise TypeError(f"{self.name}: a probe takes the request alone, and depends on nothing")
        return self.endpoint


router = APIRouter(
    prefix="/health",
    tags=["health"],
    route_class=_ProbeRoute,
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


def _response(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


# The same answer each time is made once: 12 µs less for a request that takes 45.
_ALIVE = _response(Alive())


@router.get("", response_model=Alive, response_description="Alive", summary="Is the process alive?")
async def health(_: Request) -> Response:
    """The same as `/health/live`."""
    return _ALIVE


@router.get("/live", response_model=Alive, response_description="Alive", summary="Is the process alive?")
async def live(_: Request) -> Response:
    """Answers as long as the process does. Touches nothing outside of it, so a failing database restarts nobody."""
    return _ALIVE


@router.get(
    "/ready",
    response_model=Ready,
    responses=responses(DatabaseUnavailable, ShuttingDown),
    response_description="Ready",
    summary="Can the service do its work?",
)
async def ready(request: AppRequest) -> Response:
    """Answers 200 when the database answers a query within a second, and the server is not about to end.

    `redis` is there where Redis is configured; the service works without it.
    """
    if is_draining():
        raise ShuttingDown
    try:
        async with asyncio.timeout(READY_SECONDS):
            await request.state["probe"].first(_NOTHING)
    except TimeoutError as error:
        warn_of_outage(TimeoutError(f"no answer within {READY_SECONDS} s"))
        raise DatabaseUnavailable from error
    except DATABASE_ERRORS as error:
        if not is_unavailable(error):
            raise
        warn_of_outage(error)
        raise DatabaseUnavailable from error

    return _response(Ready(redis=await _redis(request)))


async def _redis(request: AppRequest) -> Literal["connected", "unavailable"] | None:
    redis = request.state["redis"]
    if redis is None:
        return None
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await redis.ping()
    except (RedisError, TimeoutError):
        return "unavailable"
    return "connected"
