"""Hooks for schemathesis: authentication, and valid cursors, email addresses and integers."""

import asyncio
import json
import os
from typing import Any
from uuid import uuid4

import httpx
import schemathesis
from hypothesis import strategies
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX
from app.database import create_engine
from app.pagination import encode_cursor
from app.schemas import MAX_ID
from app.security import Passwords
from app.settings import Settings
from app.users.schemas import UserCreate
from app.users.service import create_user
from tests.people import PASSWORD

CALLER = os.environ["CALLER"]
# The service's settings are passed as JSON, because importing `tests` removes settings from the environment.
SETTINGS = json.loads(os.environ["SERVICE"])


async def _create_user(email: str) -> None:
    """Create the superuser directly in the database, because no route can create one."""
    settings = Settings(**SETTINGS)
    engine = create_engine(settings)
    data = UserCreate(email=email, password=PASSWORD, full_name="Ann")
    async with AsyncSession(engine) as session, session.begin():
        await create_user(session, Passwords(settings), data, is_superuser=CALLER == "superuser")
    await engine.dispose()


class Login:
    """Logs in as a new user every second, because generated requests may delete or deactivate the previous user."""

    def get(self, case: schemathesis.Case[Any], _: schemathesis.AuthContext) -> str:
        """Return an access token."""
        email = f"{uuid4().hex}@example.com"
        asyncio.run(_create_user(email))
        response = httpx.post(
            f"{case.operation.base_url.rstrip('/')}{PREFIX}/auth/login", json={"email": email, "password": PASSWORD}
        )
        return str(response.json()["access_token"])

    def set(self, case: schemathesis.Case[Any], data: str, _: schemathesis.AuthContext) -> None:
        """Add the access token to a request."""
        case.headers["Authorization"] = f"Bearer {data}"


if CALLER != "anonymous":
    schemathesis.auth(refresh_interval=1)(Login)

# A cursor is opaque: only strings that a page returned as `next_cursor` are valid.
schemathesis.openapi.format("cursor", strategies.integers(min_value=1, max_value=MAX_ID).map(encode_cursor))
# By default, schemathesis also generates email addresses in reserved domains like `.test`, which the service rejects.
schemathesis.openapi.format("email", strategies.integers(min_value=0).map("{}@example.com".format))


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, Any]) -> None:
    """Send `3.0` as `3`, because JSON Schema treats both as integers, but the service accepts only `3`."""
    case.body = _write_integers(case.body)


def _write_integers(value: Any) -> Any:  # noqa: ANN401  any JSON
    if isinstance(value, dict):
        return {key: _write_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_write_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
