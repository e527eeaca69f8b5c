"""The limit: as little code as answers the same requests, on Uvicorn and the same driver and database.

No framework, no validation, no middleware, no log, no limiter. A path, the token, one query, bytes.
"""

import os
from datetime import timedelta

import asyncpg
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from app.security import Tokens

ALIVE = b'{"status":"alive"}'
FIELDS = "id, email, full_name, is_active, is_superuser, created_at, updated_at"
READ = f"SELECT {FIELDS} FROM users WHERE id = $1"  # noqa: S608  no value in it
LIST = f"SELECT {FIELDS} FROM users ORDER BY id DESC LIMIT $1"  # noqa: S608
CURSOR = "MTAx"  # of users 200 to 101
POOL_SIZE = 5

tokens = Tokens(secret_key=os.environ["SECRET_KEY"], access_lifetime=timedelta(1), refresh_lifetime=timedelta(1))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers `/health/live`, `/users/me` and `/users/?limit=100`."""
    if scope["type"] == "lifespan":
        await _live(scope, receive, send)
        return
    path = scope["path"]
    if path == "/health/live":
        body = ALIVE
    else:
        (authorization,) = (value for name, value in scope["headers"] if name == b"authorization")
        user_id = tokens.read(authorization.decode().removeprefix("Bearer "))
        pool: asyncpg.Pool = scope["state"]["pool"]
        if path == "/users/me":
            body = to_json(dict(await pool.fetchrow(READ, user_id) or {}))
        else:
            body = to_json({"items": [dict(row) for row in await pool.fetch(LIST, 100)], "next_cursor": CURSOR})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    url = os.environ["DATABASE_URL"]
    # By default the pool asks the server to forget all settings, after each query: a round trip more.
    async with asyncpg.create_pool(url, min_size=POOL_SIZE, max_size=POOL_SIZE, reset=_no_reset) as pool:
        scope["state"]["pool"] = pool
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _no_reset(_: object) -> None:
    """Leaves the connection as it is: nothing here changes it."""
