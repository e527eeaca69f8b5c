"""What schemathesis has to be told about the service: who calls, and what an email address is."""

import asyncio
import os
from typing import Any
from uuid import uuid4

import httpx
import schemathesis
from hypothesis import strategies
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import create_engine
from app.security import Passwords
from app.settings import Settings
from app.users.schemas import UserCreate
from app.users.service import create_user
from tests.people import PASSWORD

CALLER = os.environ["CALLER"]


async def _create(email: str) -> None:
    """Makes the caller behind the API's back, as no API makes a superuser out of nobody."""
    settings = Settings()
    engine = create_engine(settings)
    data = UserCreate(email=email, password=PASSWORD, full_name="Ann")
    async with AsyncSession(engine) as session, session.begin():
        await create_user(session, Passwords(settings), data, is_superuser=CALLER == "superuser")
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
