"""Access control: the tests call every route with every kind of credentials."""

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from fastapi.routing import APIWebSocketRoute, RouteContext
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX
from app.accounts.models import AccountToken
from app.accounts.tokens import MailTokens, Purpose
from app.database import Base, utc_now
from app.middleware.paths import iter_routes
from app.settings import Settings
from app.users.models import User
from tests.conftest import SECRET_KEY, Service, change, make_settings, serve
from tests.people import PASSWORD, Person, sign_up
from tests.websocket_client import open_websocket

# Roles and routes ----------------------------------------------------------------------------------------------------


class Role(Enum):
    """A kind of caller.

    To add a role, add its description and, if needed, the values of the columns of `users` that grant it.
    """

    UNAUTHENTICATED = "a caller without valid credentials"
    SELF = "the user that the request is about"
    OTHER_USER = "another user"
    SUPERUSER = "a superuser", {"is_superuser": True}

    def __init__(self, _: str, columns: dict[str, object] | None = None) -> None:
        self.columns = columns or {}


UNAUTHORIZED = 401, "authentication_error"
FORBIDDEN = 403, "permission_error"
NOT_FOUND = 404, "not_found"

EVERYONE = frozenset(Role)
USERS = EVERYONE - {Role.UNAUTHENTICATED}
SELF_OR_SUPERUSER = frozenset({Role.SELF, Role.SUPERUSER})
SUPERUSERS = frozenset({Role.SUPERUSER})


@dataclass(frozen=True)
class Route:
    """A route, the roles that may call it, a request to it, and the status that these roles get.

    A WebSocket route has the method WEBSOCKET and the status 101. Roles that are not allowed get `refusal`, which is
    403 by default. Unauthenticated callers that are not allowed always get 401.
    """

    name: str
    allowed: frozenset[Role]
    _: KW_ONLY
    path: Mapping[str, object] = field(default_factory=dict)
    query: Mapping[str, str | int | bool] = field(default_factory=dict)
    body: Mapping[str, object] | None = None
    status: int = 200
    refusal: tuple[int, str] = FORBIDDEN


def routes(user: Person) -> list[Route]:
    """Return every route of the application, with requests that act on `user`.

    To test a new route, add it to this list.
    """
    login = {"email": user.email, "password": PASSWORD}
    token = {"refresh_token": user.refresh_token}
    new_user = {"email": "new@example.com", "password": PASSWORD, "full_name": "New"}
    new_password = {"current_password": PASSWORD, "new_password": "another password"}
    promotion = {"full_name": "New", "is_superuser": True}
    invited = {"email": "new@example.com", "full_name": "New"}
    by_mail = {"email": user.email}
    confirmations = {purpose: MAIL_TOKENS.issue(purpose, token_id) for purpose, token_id in TOKEN_IDS.items()}
    session_id = UUID(jwt.decode(user.access_token, options={"verify_signature": False})["sid"])
    one_session = {"user_id": user.id, "session_id": session_id}
    return [
        Route("GET /health", EVERYONE),
        Route("GET /health/live", EVERYONE),
        Route("GET /health/ready", EVERYONE),
        Route("GET /docs", EVERYONE),
        Route("GET /redoc", EVERYONE),
        Route("GET /openapi.json", EVERYONE),
        Route("POST /auth/login", EVERYONE, body=login),
        Route("POST /auth/refresh", EVERYONE, body=token),
        Route("POST /auth/logout", EVERYONE, body=token, status=204),
        Route("GET /auth/sessions", USERS),
        Route("DELETE /auth/sessions", USERS, status=204),
        Route(
            "DELETE /auth/sessions/{session_id}",
            frozenset({Role.SELF}),
            path={"session_id": session_id},
            status=204,
            refusal=NOT_FOUND,
        ),
        Route("POST /auth/password-reset", EVERYONE, body=by_mail, status=202),
        Route(
            "POST /auth/password-reset/confirm",
            EVERYONE,
            body={"token": confirmations["password_reset"], "new_password": "another password"},
            status=204,
        ),
        Route("POST /auth/email-verification", EVERYONE, body=by_mail, status=202),
        Route(
            "POST /auth/email-verification/confirm",
            EVERYONE,
            body={"token": confirmations["email_verification"], "password": PASSWORD},
            status=204,
        ),
        Route("GET /account/{name}", EVERYONE, path={"name": "password-reset"}),
        Route("POST /users/", EVERYONE, body=new_user, status=201),
        Route("POST /users/invitations", SUPERUSERS, body=invited, status=201),
        Route("GET /users/", SUPERUSERS, query={"limit": 10}),
        Route("GET /users/me", USERS),
        Route("PATCH /users/me", USERS, body={"full_name": "New"}),
        Route("PUT /users/me/password", USERS, body=new_password, status=204),
        Route("DELETE /users/me", USERS, status=204),
        Route("GET /users/{user_id}", SELF_OR_SUPERUSER, path={"user_id": user.id}),
        Route("PATCH /users/{user_id}", SUPERUSERS, path={"user_id": user.id}, body=promotion),
        Route("DELETE /users/{user_id}", SUPERUSERS, path={"user_id": user.id}, status=204),
        Route("POST /users/{user_id}/password-reset", SUPERUSERS, path={"user_id": user.id}, status=202),
        Route("POST /users/{user_id}/email-verification", SUPERUSERS, path={"user_id": user.id}, status=202),
        Route("GET /users/{user_id}/sessions", SUPERUSERS, path={"user_id": user.id}),
        Route("DELETE /users/{user_id}/sessions", SUPERUSERS, path={"user_id": user.id}, status=204),
        Route("DELETE /users/{user_id}/sessions/{session_id}", SUPERUSERS, path=one_session, status=204),
    ]


# Credentials ---------------------------------------------------------------------------------------------------------


class People(NamedTuple):
    """A user for each role except UNAUTHENTICATED, and two superusers who are deleted or inactive."""

    of_role: dict[Role, Person]
    deleted: Person
    inactive: Person


Token = Callable[[People], str]


def access_token_of(role: Role) -> Token:
    """Return a function that finds the user with this role and returns their access token."""
    return lambda people: people.of_role[role].access_token


def forged(key: str = SECRET_KEY, algorithm: str = "HS256", **changes: object) -> Token:
    """Return a function that creates a superuser's access token. With the default arguments, the token is valid."""

    def encode(people: People) -> str:
        now = int(time.time())
        superuser = people.of_role[Role.SUPERUSER]
        valid = jwt.decode(superuser.access_token, options={"verify_signature": False})
        return jwt.encode(valid | {"iat": now, "exp": now + 60} | changes, key, algorithm)

    return encode


def with_other_payload(people: People) -> str:
    """Return a user's access token with its payload replaced by that of the superuser's token."""
    header, _, signature = people.of_role[Role.SELF].access_token.split(".")
    _, payload, _ = people.of_role[Role.SUPERUSER].access_token.split(".")
    return f"{header}.{payload}.{signature}"


CALLERS: dict[str, tuple[Role, Token | None]] = {
    **{role.name: (role, access_token_of(role)) for role in Role if role in USERS},
    # `forged()` creates a valid token. This shows that the other forged tokens are rejected because of their changes.
    "forged without a fault": (Role.SUPERUSER, forged()),
    "no token": (Role.UNAUTHENTICATED, None),
    "expired": (Role.UNAUTHENTICATED, forged(iat=1, exp=2)),
    "no signature": (Role.UNAUTHENTICATED, forged(key="", algorithm="none")),
    "other algorithm": (Role.UNAUTHENTICATED, forged(key=SECRET_KEY * 2, algorithm="HS512")),
    "other key": (Role.UNAUTHENTICATED, forged(key="another key of 32 bytes or even more")),
    "other audience": (Role.UNAUTHENTICATED, forged(aud="another")),
    "other issuer": (Role.UNAUTHENTICATED, forged(iss="another")),
    "other payload": (Role.UNAUTHENTICATED, with_other_payload),
    "refresh token": (Role.UNAUTHENTICATED, lambda people: people.of_role[Role.SUPERUSER].refresh_token),
    "deleted user": (Role.UNAUTHENTICATED, lambda people: people.deleted.access_token),
    "inactive user": (Role.UNAUTHENTICATED, lambda people: people.inactive.access_token),
}


# Tokens like those in the service's emails. They belong to the user that the requests act on.
MAIL_TOKENS = MailTokens(make_settings())
TOKEN_IDS: dict[Purpose, UUID] = {"password_reset": uuid4(), "email_verification": uuid4()}


async def add_mail_tokens(session: AsyncSession, person: Person) -> None:
    """Store the database rows that make the tokens in TOKEN_IDS valid."""
    user = await session.get_one(User, person.id)
    now = utc_now()
    for purpose, token_id in TOKEN_IDS.items():
        session.add(
            AccountToken(
                user_id=user.id,
                purpose=purpose,
                token_id=token_id,
                email=user.email,
                security_stamp=user.security_stamp,
                requested_at=now,
                expires_at=now + timedelta(hours=1),
            )
        )
    await session.commit()


async def create_people(client: httpx.AsyncClient, session: AsyncSession) -> People:
    """Sign up a user for each role except UNAUTHENTICATED, a deleted user and an inactive one."""

    async def create(name: str, **columns: object) -> Person:
        person = await sign_up(client, f"{name}@example.com")
        if columns:
            await session.execute(update(User).where(User.id == person.id).values(columns))
            await session.commit()
        return person

    of_role = {role: await create(role.name.lower(), **role.columns) for role in Role if role in USERS}
    await create("second-superuser", is_superuser=True)  # because the last superuser cannot be deleted
    await add_mail_tokens(session, of_role[Role.SELF])
    deleted = await create("deleted", is_superuser=True)
    inactive = await create("inactive", is_superuser=True, is_active=False)
    await session.execute(delete(User).where(User.id == deleted.id))
    await session.commit()
    return People(of_role, deleted, inactive)


# Database ------------------------------------------------------------------------------------------------------------

Rows = dict[str, list[dict[str, Any]]]


async def read_database(session: AsyncSession) -> Rows:
    """Return all rows of all tables."""
    rows = {}
    for table in Base.metadata.sorted_tables:
        result = await session.execute(select(table).order_by(*table.primary_key))
        rows[table.name] = [dict(row) for row in result.mappings()]
    await session.rollback()
    return rows


async def restore_database(session: AsyncSession, rows: Rows) -> None:
    """Replace the contents of all tables with these rows."""
    for table in reversed(Base.metadata.sorted_tables):
        await session.execute(delete(table))
    for table in Base.metadata.sorted_tables:
        if rows[table.name]:
            await session.execute(insert(table), rows[table.name])
    await session.commit()


# Tests ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """The running application with all of its routes."""
    async with serve(change(settings, mail=True), sends_mail=False) as service:
        yield service


async def call(service: Service, route: Route, headers: dict[str, str]) -> tuple[int, str | None]:
    """Send the route's request with these headers, and return the status and the error type."""
    method, path = route.name.format(**route.path).split()
    if method != "WEBSOCKET":
        response = await service.client.request(method, path, params=route.query, headers=headers, json=route.body)
        return response.status_code, response.json()["type"] if response.is_error else None
    async with open_websocket(service, PREFIX + path, headers) as websocket:
        if (start := await websocket.receive())["type"] == "websocket.accept":
            return 101, None
        return start["status"], json.loads((await websocket.receive())["body"])["type"]


@pytest.mark.parametrize("caller", CALLERS)
async def test_route_serves_only_allowed_roles(service: Service, session: AsyncSession, caller: str) -> None:
    role, token = CALLERS[caller]
    people = await create_people(service.client, session)
    headers = {"Authorization": f"Bearer {token(people)}"} if token else {}
    before = await read_database(session)

    for route in routes(people.of_role[Role.SELF]):
        status, error = await call(service, route, headers)

        if role in route.allowed:
            assert status == route.status, route.name
            await restore_database(session, before)
        else:
            refusal = UNAUTHORIZED if role is Role.UNAUTHENTICATED else route.refusal
            assert (status, error) == refusal, route.name
            assert await read_database(session) == before, route.name


def methods(route: RouteContext) -> set[str]:
    """Return the HTTP methods of a route, or an empty set if the route is a mounted application."""
    return {"WEBSOCKET"} if isinstance(route.route, APIWebSocketRoute) else route.methods or set()


async def test_every_route_is_tested(service: Service) -> None:
    user = await sign_up(service.client)

    names = {
        f"{method} {path.removeprefix(PREFIX)}"
        for path, route in iter_routes(service.app.routes)
        for method in methods(route) - {"HEAD"}
    }

    assert names == {route.name for route in routes(user)}
