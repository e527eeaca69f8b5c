"""What schemathesis has to be told about the service: who calls, and what an email address is."""

import asyncio
import os
from typing import Any
from uuid import uuid4

import httpx
import schemathesis
from hypothesis import strategies

from app.database import create_engine, create_sessions
from app.lifespan import create_passwords
from app.settings import Settings
from app.users.schemas import UserCreate
from app.users.service import create_user
from tests.people import PASSWORD

CALLER = os.environ["CALLER"]


async def _create(email: str) -> None:
    """Makes the caller behind the API's back, as no API makes a superuser out of nobody."""
    settings = Settings()
    engine = create_engine(settings.database)
    write_sessions = create_sessions(engine)
    data = UserCreate(email=email, password=PASSWORD, full_name="Ann")
    async with write_sessions.begin() as session:
        await create_user(session, create_passwords(settings.auth), data, is_superuser=CALLER == "superuser")
    await engine.dispose()


class Caller:
    """Somebody new every second: what is tried out may delete or disable whoever tries it."""

    def get(self, case: schemathesis.Case[Any], _: schemathesis.AuthContext) -> str:
        email = f"{uuid4().hex}@example.com"
        asyncio.run(_create(email))
        answer = httpx.post(case.operation.base_url + "auth/login", json={"email": email, "password": PASSWORD})
        return str(answer.json()["access_token"])

    def set(self, case: schemathesis.Case[Any], data: str, _: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


if CALLER != "nobody":
    schemathesis.auth(refresh_interval=1)(Caller)

# By itself it takes names for addresses that are reserved and so refused, as those in `.test`.
schemathesis.openapi.format("email", strategies.integers(min_value=0).map("{}@example.com".format))
