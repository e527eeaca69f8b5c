"""Sign up users and log them in."""

import json
from dataclasses import dataclass

import httpx
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.users.models import User

PASSWORD = "correct horse battery staple"
# Addresses that are too long for email in their normal form, because "İ" has three bytes in lower case instead of two.
# The first then has 65 bytes before the @ (64 are allowed) and 260 in all (254 are allowed). The second has 264 once
# its domain is encoded in ASCII.
TOO_LONG_IN_LOWER_CASE = [
    "İ" * 20 + "12345@" + ".".join(["x" * 60] * 3) + ".example.com",
    "İ" * 20 + "@" + "ü." * 25 + "com",
]


@dataclass
class Person:
    """A registered user and the token pair from their login."""

    id: int
    email: str
    access_token: str
    refresh_token: str

    @property
    def auth(self) -> dict[str, str]:
        """The Authorization header of the user."""
        return {"Authorization": f"Bearer {self.access_token}"}


async def register(
    client: httpx.AsyncClient, email: str = "ann@example.com", *, fields: dict[str, object] | None = None
) -> httpx.Response:
    """Register a user. `fields` are added to the request body, and override its default fields."""
    data = {"email": email, "password": PASSWORD, "full_name": "Ann"} | (fields or {})
    body = json.dumps(data)  # httpx's encoder does not escape lone surrogates
    return await client.post("/users/", content=body, headers={"Content-Type": "application/json"})


async def log_in(client: httpx.AsyncClient, email: str = "ann@example.com", password: str = PASSWORD) -> httpx.Response:
    """Log in."""
    return await client.post("/auth/login", json={"email": email, "password": password})


async def sign_up(client: httpx.AsyncClient, email: str = "ann@example.com") -> Person:
    """Register a user and log in."""
    registered = await register(client, email)
    assert registered.status_code == 201, registered.text
    tokens = (await log_in(client, email)).json()
    return Person(registered.json()["id"], email, tokens["access_token"], tokens["refresh_token"])


async def sign_up_superuser(
    client: httpx.AsyncClient, session: AsyncSession, email: str = "root@example.com"
) -> Person:
    """Register a user, log in, and make the user a superuser.

    Change the database directly, because the route for this needs another superuser.
    """
    person = await sign_up(client, email)
    await session.execute(update(User).where(User.id == person.id).values(is_superuser=True))
    await session.commit()
    return person
