"""Who may do what: every route, by everybody who may come along with whatever they hold."""

import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import httpx
import jwt
import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import NAME
from app.users.models import User
from tests.conftest import SECRET_KEY, Service
from tests.people import PASSWORD, Person, sign_up, sign_up_superuser

# What each is answered: who holds no valid token, the user whom it is about, another user, a superuser.
ACCESS = {
    "GET /health": (200, 200, 200, 200),
    "GET /health/live": (200, 200, 200, 200),
    "GET /health/ready": (200, 200, 200, 200),
    "GET /docs": (200, 200, 200, 200),
    "GET /redoc": (200, 200, 200, 200),
    "GET /openapi.json": (200, 200, 200, 200),
    "POST /auth/login": (200, 200, 200, 200),
    "POST /auth/refresh": (200, 200, 200, 200),
    "POST /auth/logout": (204, 204, 204, 204),
    "POST /users/": (201, 201, 201, 201),
    "GET /users/": (401, 403, 403, 200),
    "GET /users/me": (401, 200, 200, 200),
    "PATCH /users/me": (401, 200, 200, 200),
    "PUT /users/me/password": (401, 204, 204, 204),
    "DELETE /users/me": (401, 204, 204, 204),
    "GET /users/{user_id}": (401, 200, 403, 200),
    "PATCH /users/{user_id}": (401, 403, 403, 200),
    "DELETE /users/{user_id}": (401, 403, 403, 204),
}


class Cast(NamedTuple):
    """Who there is. Each route is tried on Ann."""

    ann: Person
    bob: Person
    root: Person
    gone: Person
    inactive: Person


def forged(key: str = SECRET_KEY, algorithm: str = "HS256", **changes: object) -> Callable[[Cast], str]:
    """A token that would be the superuser's, but for one thing."""

    def forge(cast: Cast) -> str:
        now = int(time.time())
        claims = {"sub": str(cast.root.id), "iss": NAME, "aud": NAME, "iat": now, "exp": now + 60}
        return jwt.encode(claims | changes, key, algorithm)

    return forge


def with_another_payload(cast: Cast) -> str:
    """Ann's own, with the superuser's payload."""
    (head, _, signature), (_, payload, _) = cast.ann.access_token.split("."), cast.root.access_token.split(".")
    return f"{head}.{payload}.{signature}"


NOBODY, ANN, BOB, ROOT = range(4)  # the columns of ACCESS
CALLERS: dict[str, tuple[int, Callable[[Cast], str]]] = {
    "nobody": (NOBODY, lambda _: ""),
    "expired": (NOBODY, forged(iat=1, exp=2)),
    "no algorithm": (NOBODY, forged(key="", algorithm="none")),
    "other algorithm": (NOBODY, forged(key=SECRET_KEY * 2, algorithm="HS512")),
    "other key": (NOBODY, forged(key="another key of 32 bytes or even more")),
    "other audience": (NOBODY, forged(aud="another")),
    "other issuer": (NOBODY, forged(iss="another")),
    "other payload": (NOBODY, with_another_payload),
    "refresh token": (NOBODY, lambda cast: cast.root.refresh_token),
    "deleted": (NOBODY, lambda cast: cast.gone.access_token),
    "inactive": (NOBODY, lambda cast: cast.inactive.access_token),
    "user": (ANN, lambda cast: cast.ann.access_token),
    "other user": (BOB, lambda cast: cast.bob.access_token),
    "superuser": (ROOT, lambda cast: cast.root.access_token),
    "forged into a valid one": (ROOT, forged()),  # so that the others fail for the one thing
}


async def assemble(client: httpx.AsyncClient, session: AsyncSession) -> Cast:
    await session.execute(delete(User))
    await session.commit()
    ann, bob, gone, inactive = [await sign_up(client, f"{name}@example.com") for name in ("ann", "bob", "gone", "out")]
    roots = [await sign_up_superuser(client, session, f"root{number}@example.com") for number in range(2)]
    superusers = update(User).where(User.id.in_([gone.id, inactive.id]))
    await session.execute(superusers.values(is_superuser=True))
    await session.execute(update(User).where(User.id == inactive.id).values(is_active=False))
    await session.execute(delete(User).where(User.id == gone.id))
    await session.commit()
    return Cast(ann, bob, roots[0], gone, inactive)


def body(route: str, ann: Person) -> dict[str, object] | None:
    """What the route takes, if it takes any."""
    bodies: dict[str, dict[str, object]] = {
        "POST /auth/login": {"email": ann.email, "password": PASSWORD},
        "POST /auth/refresh": {"refresh_token": ann.refresh_token},
        "POST /auth/logout": {"refresh_token": ann.refresh_token},
        "POST /users/": {"email": "new@example.com", "password": PASSWORD, "full_name": "New"},
        "PATCH /users/me": {"full_name": "Changed"},
        "PUT /users/me/password": {"current_password": PASSWORD, "new_password": "another password"},
        "PATCH /users/{user_id}": {"full_name": "Changed", "is_superuser": True},
    }
    return bodies.get(route)


async def users(session: AsyncSession) -> Sequence[Row[int, str, str, bool, bool, int]]:
    columns = (User.id, User.full_name, User.password_hash, User.is_active, User.is_superuser, User.credentials_version)
    rows = (await session.execute(select(*columns).order_by(User.id))).all()
    await session.rollback()
    return rows


@pytest.mark.parametrize("caller", CALLERS)
async def test_everybody_may_do_what_the_table_says(
    client: httpx.AsyncClient, session: AsyncSession, caller: str
) -> None:
    column, hold = CALLERS[caller]
    cast: Cast | None = None

    for route, expected in ACCESS.items():
        cast = cast or await assemble(client, session)
        before = await users(session)
        headers = {"Authorization": f"Bearer {hold(cast)}"} if caller != "nobody" else {}
        method, path = re.sub(r"{\w+}", str(cast.ann.id), route).split()

        response = await client.request(method, path, headers=headers, json=body(route, cast.ann))

        assert response.status_code == expected[column], route
        if response.is_error:
            kind = {401: "authentication_error", 403: "permission_error", 404: "not_found"}[response.status_code]
            assert response.json()["type"] == kind, route
            assert await users(session) == before, route
        elif method != "GET":
            cast = None  # something has changed


async def test_every_route_is_in_the_table(service: Service) -> None:
    routes = {
        f"{method} {route.path}"
        for route in iter_route_contexts(service.app.routes)
        for method in (route.methods or set()) - {"HEAD"}
    }

    assert routes == ACCESS.keys()
