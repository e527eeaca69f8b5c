"""A minimal ASGI application with the same responses as the service. Its speed is an upper limit for the service's.

Like the service, it runs on Uvicorn and uses asyncpg. It has no framework, validation, middleware, log or rate limiter.
It only checks the path and the token, runs one query, and sends bytes.
"""

import os

import asyncpg
import jwt
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from app import NAME, PREFIX

ALIVE = b'{"status":"alive"}'
COLUMNS = "id, email, full_name, is_active, is_superuser, email_verified, pending_email, created_at, updated_at"
SELECT_ONE = f"SELECT {COLUMNS} FROM users WHERE id = $1"  # noqa: S608  a constant
SELECT_PAGE = f"SELECT {COLUMNS} FROM users ORDER BY id DESC LIMIT $1"  # noqa: S608  a constant
CURSOR = "MTAx"  # points to the page after the first 100 of 200 users
POOL_SIZE = 5


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve `/health/live`, `/users/me` and `/users/?limit=100`."""
    if scope["type"] == "lifespan":
        await _run_lifespan(scope, receive, send)
        return
    path = scope["path"].removeprefix(PREFIX)
    if path == "/health/live":
        body = ALIVE
    else:
        (authorization,) = (value for name, value in scope["headers"] if name == b"authorization")
        user_id = _verify(authorization.decode().removeprefix("Bearer "))
        pool: asyncpg.Pool = scope["state"]["pool"]
        if path == "/users/me":
            body = to_json(dict(await pool.fetchrow(SELECT_ONE, user_id) or {}))
        else:
            body = to_json({"items": [dict(row) for row in await pool.fetch(SELECT_PAGE, 100)], "next_cursor": CURSOR})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _verify(token: str) -> int:
    """Verify an access token, and return the id of its user."""
    claims = jwt.decode(token, os.environ["SECRET_KEY"], algorithms=["HS256"], audience=NAME, issuer=NAME)
    return int(claims["sub"])


async def _run_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    url = os.environ["DATABASE_URL"]
    # Do not reset connections. By default, the pool resets a connection after each query, which costs a round trip.
    async with asyncpg.create_pool(url, min_size=POOL_SIZE, max_size=POOL_SIZE, reset=_keep_settings) as pool:
        scope["state"]["pool"] = pool
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _keep_settings(_: object) -> None:
    """Do nothing instead of resetting a connection, because no query changes its settings."""
