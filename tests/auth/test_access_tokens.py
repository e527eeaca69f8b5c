"""An access token is valid only if it was signed by this service, is meant for this service, and has not expired."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import NAME
from app.security import AccessToken, InvalidAccessToken, Tokens
from app.settings import Settings
from app.users.models import Login, User
from tests.conftest import SECRET_KEY, change, make_settings, serve
from tests.people import PASSWORD, Person, log_in, sign_up, sign_up_superuser

LOGIN, STAMP = uuid4(), uuid4()


@pytest.fixture
async def ann(client: httpx.AsyncClient, session: AsyncSession) -> Person:
    """A user whose security stamp and login id are known, so that tests can forge the user's tokens.

    The user with the next user id has the same stamp.
    """
    ann = await sign_up(client)
    bob = await sign_up(client, "bob@example.com")
    assert bob.id == ann.id + 1
    await session.execute(update(User).values(security_stamp=STAMP))
    await session.execute(update(Login).where(Login.user_id == ann.id).values(login_id=LOGIN))
    await session.commit()
    return ann


async def status(client: httpx.AsyncClient, token: str) -> int:
    return (await client.get("/users/me", headers={"Authorization": f"Bearer {token}"})).status_code


def claims(user_id: int, **changes: object) -> dict[str, Any]:
    """Return the claims of a valid token, with `changes` applied. A value of None removes the claim."""
    now = int(time.time())
    valid = {
        "sub": str(user_id),
        "sid": LOGIN.hex,
        "stamp": STAMP.hex,
        "iss": NAME,
        "aud": NAME,
        "iat": now,
        "exp": now + 60,
    }
    return {name: value for name, value in (valid | changes).items() if value is not None}


@pytest.mark.parametrize(("seconds_ahead", "expected"), [(0, 200), (4, 200), (60, 401)])
async def test_token_from_clock_slightly_ahead_is_accepted(
    client: httpx.AsyncClient, ann: Person, seconds_ahead: int, expected: int
) -> None:
    token = jwt.encode(claims(ann.id, iat=int(time.time()) + seconds_ahead), SECRET_KEY, "HS256")

    assert await status(client, token) == expected


async def test_token_expired_on_clock_slightly_ahead_is_accepted(client: httpx.AsyncClient, ann: Person) -> None:
    token = jwt.encode(claims(ann.id, exp=int(time.time()) - 2), SECRET_KEY, "HS256")

    assert await status(client, token) == 200


INVALID_TOKENS: dict[str, Callable[[int], str]] = {
    "other key": lambda user: jwt.encode(claims(user), "another key of 32 bytes or even more", "HS256"),
    "no signature": lambda user: jwt.encode(claims(user), "", "none"),
    "other algorithm": lambda user: jwt.encode(claims(user), SECRET_KEY * 2, "HS512"),
    "expired": lambda user: jwt.encode(claims(user, exp=1), SECRET_KEY),
    "other audience": lambda user: jwt.encode(claims(user, aud="x"), SECRET_KEY),
    "other issuer": lambda user: jwt.encode(claims(user, iss="x"), SECRET_KEY),
    "subject is not an id": lambda user: jwt.encode(claims(user, sub="me"), SECRET_KEY),
    "no subject": lambda user: jwt.encode(claims(user, sub=None), SECRET_KEY),
    "no expiry": lambda user: jwt.encode(claims(user, exp=None), SECRET_KEY),
    "no audience": lambda user: jwt.encode(claims(user, aud=None), SECRET_KEY),
    "no issuer": lambda user: jwt.encode(claims(user, iss=None), SECRET_KEY),
    "no issue time": lambda user: jwt.encode(claims(user, iat=None), SECRET_KEY),
    "no security stamp": lambda user: jwt.encode(claims(user, stamp=None), SECRET_KEY),
    "other security stamp": lambda user: jwt.encode(claims(user, stamp=LOGIN.hex), SECRET_KEY),
    "security stamp is not hexadecimal": lambda user: jwt.encode(claims(user, stamp="x"), SECRET_KEY),
    "security stamp in another form": lambda user: jwt.encode(claims(user, stamp=str(STAMP)), SECRET_KEY),
    "security stamp is no string": lambda user: jwt.encode(claims(user, stamp=1), SECRET_KEY),
    "other login": lambda user: jwt.encode(claims(user, sid=STAMP.hex), SECRET_KEY),
    "login of another user": lambda user: jwt.encode(claims(user + 1), SECRET_KEY),
    "no login": lambda user: jwt.encode(claims(user, sid=None), SECRET_KEY),
    "subject beyond the range of ids": lambda user: jwt.encode(claims(user, sub=str(10**31)), SECRET_KEY),
    "subject in full-width digits": lambda user: jwt.encode(claims(user, sub=chr(0xFF10 + user)), SECRET_KEY),
    "subject with a leading zero": lambda user: jwt.encode(claims(user, sub=f"0{user}"), SECRET_KEY),
    "subject with a sign": lambda user: jwt.encode(claims(user, sub=f"+{user}"), SECRET_KEY),
    "subject with a space": lambda user: jwt.encode(claims(user, sub=f" {user}"), SECRET_KEY),
    "audience in a list": lambda user: jwt.encode(claims(user, aud=[NAME]), SECRET_KEY),
    "expiry as a string": lambda user: jwt.encode(claims(user, exp=str(2**40)), SECRET_KEY),
    "expiry as a fraction": lambda user: jwt.encode(claims(user, exp=2.0**40), SECRET_KEY),
    "issue time as a boolean": lambda user: jwt.encode(claims(user, iat=True), SECRET_KEY),
    "unknown claim": lambda user: jwt.encode(claims(user, admin=True), SECRET_KEY),
}


@pytest.mark.parametrize("encode", INVALID_TOKENS.values(), ids=INVALID_TOKENS)
async def test_invalid_token_returns_401(client: httpx.AsyncClient, ann: Person, encode: Callable[[int], str]) -> None:
    assert await status(client, encode(ann.id)) == 401


def test_rejected_token_leaves_no_reference_cycle() -> None:
    tokens = Tokens(make_settings())
    gc.collect()

    with suppress(InvalidAccessToken):
        tokens.verify("invalid")

    assert gc.collect() == 0  # a cycle would keep the request in memory until it is collected, which takes time


async def test_token_of_previous_key_is_accepted(settings: Settings) -> None:
    async with serve(settings) as before:
        ann = await sign_up(before.client)
    new_key = change(settings, secret_key="a new secret key, of 32 bytes or more", secret_key_previous=SECRET_KEY)
    async with serve(new_key) as after:
        assert await status(after.client, ann.access_token) == 200
        pair = (await after.client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})).json()
        assert await status(after.client, pair["access_token"]) == 200
    async with serve(change(new_key, secret_key_previous=None)) as later:
        assert await status(later.client, ann.access_token) == 401
        assert await status(later.client, pair["access_token"]) == 200


async def test_access_token_ends_with_password_change(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    body = {"current_password": PASSWORD, "new_password": "another password"}

    assert (await client.put("/users/me/password", headers=ann.auth, json=body)).status_code == 204

    assert await status(client, ann.access_token) == 401


async def test_reactivation_does_not_revive_access_tokens(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann, root = await sign_up(client), await sign_up_superuser(client, session)
    for is_active in (False, True):
        await client.patch(f"/users/{ann.id}", headers=root.auth, json={"is_active": is_active})

    assert await status(client, ann.access_token) == 401
    assert (await log_in(client)).status_code == 200


async def test_token_of_deleted_user_is_not_valid_for_next_user_with_same_id(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str
) -> None:
    """Once a backup is restored, new users may get the ids of users who had registered after it was made."""
    ann = await sign_up(client)
    await client.delete("/users/me", headers=ann.auth)
    if database_url.startswith("sqlite"):
        await session.execute(text("DELETE FROM sqlite_sequence"))
    else:
        await session.execute(text("ALTER TABLE users ALTER id RESTART"))
    await session.commit()
    bob = await sign_up(client, "bob@example.com")

    assert bob.id == ann.id
    assert await status(client, ann.access_token) == 401
    assert await status(client, bob.access_token) == 200


REASONS: dict[str, Callable[[int], str]] = {
    "no token": lambda _: "",
    "invalid signature": INVALID_TOKENS["other key"],
    "expired token": INVALID_TOKENS["expired"],
    "token from another issuer": INVALID_TOKENS["other issuer"],
    "token for another audience": INVALID_TOKENS["other audience"],
    "token from the future": lambda user: jwt.encode(claims(user, iat=2**40, exp=2**41), SECRET_KEY),
    "malformed token": lambda _: "x",
    "login ended": INVALID_TOKENS["other login"],
    "login ended by a change of the account": INVALID_TOKENS["other security stamp"],
}


@pytest.mark.parametrize(("reason", "encode"), REASONS.items(), ids=REASONS)
async def test_access_log_contains_reason_of_401(
    client: httpx.AsyncClient,
    ann: Person,
    logs: list[structlog.typing.EventDict],
    reason: str,
    encode: Callable[[int], str],
) -> None:
    assert await status(client, encode(ann.id)) == 401

    assert logs[-1]["reason"] == reason


async def test_access_log_contains_user_and_login(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]
) -> None:
    ann = await sign_up(client)
    login = jwt.decode(ann.access_token, options={"verify_signature": False})["sid"]

    await client.get("/users/me", headers=ann.auth)
    await client.get("/users/me")

    assert (logs[-2]["user_id"], logs[-2]["login_id"]) == (ann.id, login)
    assert "user_id" not in logs[-1]


async def test_refresh_token_as_access_token_returns_401(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await client.get("/users/me", headers={"Authorization": f"Bearer {ann.refresh_token}"})

    assert response.status_code == 401


def test_short_key_signs_no_token() -> None:
    settings = make_settings().model_copy(update={"secret_key": SecretStr("short")})

    with pytest.raises(jwt.InvalidKeyError):
        Tokens(settings).issue(AccessToken(1, STAMP, LOGIN))


def test_secret_key_is_not_shown() -> None:
    settings = make_settings()

    assert SECRET_KEY not in repr(settings)
    assert SECRET_KEY not in settings.model_dump_json()
