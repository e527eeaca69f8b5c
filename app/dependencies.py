"""Dependencies that routes declare in their signatures."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session
from starlette.requests import HTTPConnection

from app.database import FastReader
from app.lifespan import State
from app.limiter import RateLimiter
from app.mail.outbox import Outbox
from app.security import Passwords, Tokens
from app.settings import Settings


class AppRequest(HTTPConnection[State]):
    """A request or WebSocket whose `state` is typed.

    Use this class only in annotations. At run time, FastAPI passes a plain `Request` or `WebSocket`.
    """


class RequestSession(Session):
    """The session of a request. Flushes and statements that write are errors unless `info["is_writable"]` is set.

    Not checked: SQL in `text()`, DDL, CTEs that write, bulk methods, and statements that bypass the session.
    """


def _require_writable(session: Session) -> None:
    if not session.info.get("is_writable"):
        raise RuntimeError("ReadSession is read-only: depend on WriteSession to change the database.")


@event.listens_for(RequestSession, "do_orm_execute")
def _check_statement(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        _require_writable(state.session)


@event.listens_for(RequestSession, "before_flush")
def _check_flush(session: Session, _context: object, _objects: object) -> None:
    _require_writable(session)


def _check_changes(session: AsyncSession) -> None:
    if session.new or session.dirty or session.deleted:
        _require_writable(session.sync_session)


async def get_read_session(request: AppRequest) -> AsyncIterator[AsyncSession]:
    """Open the request's session in autocommit mode. The session connects to the database on first use.

    With `close_resets_only=False`, using the session after it is closed raises an error. With SQLAlchemy's default
    (True), the session would open another connection, which would never be returned to the pool.
    """
    async with AsyncSession(
        request.state["read_engine"],
        sync_session_class=RequestSession,
        expire_on_commit=False,
        autoflush=False,
        close_resets_only=False,
    ) as session:
        yield session
        _check_changes(session)


# With scope="function", the code after `yield` runs before the response is sent. By default, it would run afterwards.
ReadSession = Annotated[AsyncSession, Depends(get_read_session, scope="function")]


async def get_write_session(request: AppRequest, session: ReadSession) -> AsyncIterator[AsyncSession]:
    """Yield the request's session in a transaction, which is committed before the response is sent.

    Reads and writes share one session, so that a request never needs two connections. If many requests each held one
    connection and waited for a second one, they would deadlock.
    """
    await session.commit()  # returns the connection of earlier reads to the pool, and raises an error for changes
    session.sync_session.bind = request.state["engine"].sync_engine
    session.info["is_writable"] = True
    yield session
    await session.commit()
    session.info["is_writable"] = False  # later writes of other dependencies would not be committed


WriteSession = Annotated[AsyncSession, Depends(get_write_session, scope="function")]


async def get_body_stream(request: Request) -> AsyncIterator[bytes]:
    """Return the body as a stream of chunks.

    The chunks are not kept in memory, so MAX_TOTAL_BODY_SIZE does not apply.
    """
    request.scope["streams_body"] = True  # read by BodyLimitMiddleware
    return request.stream()


# Use this type for large request bodies. The route also needs its own `max_body_size`.
BodyStream = Annotated[AsyncIterator[bytes], Depends(get_body_stream)]


async def get_fast_reader(request: AppRequest) -> FastReader:
    return request.state["fast_reader"]


async def get_limiter(request: AppRequest) -> RateLimiter:
    return request.state["limiter"]


async def get_outbox(request: AppRequest) -> Outbox:
    return request.state["outbox"]


async def get_passwords(request: AppRequest) -> Passwords:
    return request.state["passwords"]


async def get_settings(request: AppRequest) -> Settings:
    return request.state["settings"]


async def get_tokens(request: AppRequest) -> Tokens:
    return request.state["tokens"]


FastReaderDep = Annotated[FastReader, Depends(get_fast_reader)]
LimiterDep = Annotated[RateLimiter, Depends(get_limiter)]
OutboxDep = Annotated[Outbox, Depends(get_outbox)]
PasswordsDep = Annotated[Passwords, Depends(get_passwords)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
TokensDep = Annotated[Tokens, Depends(get_tokens)]
