"""What lives as long as the process, as a request sees it; made in `lifespan.py`."""

from typing import Annotated, TypedDict

from fastapi import Depends
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from starlette.requests import Request

from app.limiter import RateLimiter
from app.reader import Reader
from app.security import Passwords, Tokens


class State(TypedDict):
    """The lifespan's state: `request.state["redis"]`."""

    engine: AsyncEngine
    reader: Reader
    write_sessions: async_sessionmaker[AsyncSession]
    probe: Reader
    redis: Redis | None
    limiter: RateLimiter
    passwords: Passwords
    tokens: Tokens


class AppRequest(Request[State]):
    """A request with typed state, for signatures: FastAPI passes a plain `Request`."""


async def _limiter(request: AppRequest) -> RateLimiter:
    return request.state["limiter"]


async def _passwords(request: AppRequest) -> Passwords:
    return request.state["passwords"]


async def _tokens(request: AppRequest) -> Tokens:
    return request.state["tokens"]


LimiterDep = Annotated[RateLimiter, Depends(_limiter)]
PasswordsDep = Annotated[Passwords, Depends(_passwords)]
TokensDep = Annotated[Tokens, Depends(_tokens)]
