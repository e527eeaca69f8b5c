"""Access tokens: only those that this service has signed, for itself, and that have not expired are valid."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from pydantic import SecretStr

from app import NAME
from app.security import Tokens
from tests.conftest import SECRET_KEY, make_settings
from tests.people import sign_up


def claims(user_id: int, **changes: object) -> dict[str, Any]:
    """Return the claims of a valid token with some of them replaced, or removed by None."""
    now = int(time.time())
    valid = {"sub": str(user_id), "iss": NAME, "aud": NAME, "iat": now, "exp": now + 60}
    return {name: value for name, value in (valid | changes).items() if value is not None}


@pytest.mark.parametrize("seconds_ahead", [0, 5])
async def test_token_from_clock_ahead_is_accepted(client: httpx.AsyncClient, seconds_ahead: int) -> None:
    ann = await sign_up(client)
    token = jwt.encode(claims(ann.id, iat=int(time.time()) + seconds_ahead), SECRET_KEY, "HS256")

    response = await client.get("/users/me", headers={"Authorization": f"Bearer {token}"})

    assert response.status_code == 200


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
}


@pytest.mark.parametrize("encode", INVALID_TOKENS.values(), ids=INVALID_TOKENS)
async def test_invalid_token_returns_401(client: httpx.AsyncClient, encode: Callable[[int], str]) -> None:
    ann = await sign_up(client)

    response = await client.get("/users/me", headers={"Authorization": f"Bearer {encode(ann.id)}"})

    assert response.status_code == 401


async def test_refresh_token_as_access_token_returns_401(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await client.get("/users/me", headers={"Authorization": f"Bearer {ann.refresh_token}"})

    assert response.status_code == 401


def test_short_key_signs_no_token() -> None:
    settings = make_settings().model_copy(update={"secret_key": SecretStr("short")})

    with pytest.raises(jwt.InvalidKeyError):
        Tokens(settings).issue(1)


def test_secret_key_is_not_shown() -> None:
    settings = make_settings()

    assert SECRET_KEY not in repr(settings)
    assert SECRET_KEY not in settings.model_dump_json()
