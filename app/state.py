"""What lives as long as the process, as a request sees it; made in `lifespan.py`."""

from typing import TypedDict

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
