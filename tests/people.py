"""People who use the service in tests."""

import json
from dataclasses import dataclass

import httpx
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.users.models import User

PASSWORD = "correct horse battery staple"


@dataclass
class Person:
    """A registered user with what they need to be recognised."""

    id: int
    email: str
    access_token: str
    refresh_token: str

    @property
    def auth(self) -> dict[str, str]:
        """The header that says who calls."""
        return {"Authorization": f"Bearer {self.access_token}"}


async def register(
    client: httpx.AsyncClient, email: str = "ann@example.com", *, fields: dict[str, object] | None = None
) -> httpx.Response:
    """Registers, with any field of the request changed at will."""
    data = {"email": email, "password": PASSWORD, "full_name": "Ann"} | (fields or {})
    body = json.dumps(data)  # unlike httpx's own, it escapes what UTF-8 cannot hold
    return await client.post("/users/", content=body, headers={"Content-Type": "application/json"})


async def log_in(client: httpx.AsyncClient, email: str = "ann@example.com", password: str = PASSWORD) -> httpx.Response:
    """Logs in."""
    return await client.post("/auth/login", json={"email": email, "password": password})


async def join(client: httpx.AsyncClient, email: str = "ann@example.com") -> Person:
    """Registers and logs in."""
    registered = await register(client, email)
    assert registered.status_code == 201, registered.text
    tokens = (await log_in(client, email)).json()
    return Person(registered.json()["id"], email, tokens["access_token"], tokens["refresh_token"])


async def join_as_superuser(
    client: httpx.AsyncClient, session: AsyncSession, email: str = "root@example.com"
) -> Person:
    """Registers, logs in, and is made a superuser behind the API's back."""
    person = await join(client, email)
    await session.execute(update(User).where(User.id == person.id).values(is_superuser=True))
    await session.commit()
    return person
