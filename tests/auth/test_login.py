"""Login: correct credentials return a token pair, and all failed logins return the same response."""

from datetime import timedelta

import httpx
import jwt
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.service import KEEP_EXPIRED
from app.database import utc_now
from app.security import Passwords
from app.settings import Settings
from app.users.models import Login, User
from tests.conftest import change, make_settings, serve
from tests.people import PASSWORD, log_in, register, sign_up


async def test_login_returns_token_pair(client: httpx.AsyncClient) -> None:
    await register(client)

    response = await log_in(client, "ANN@example.com")

    assert response.status_code == 200
    pair = response.json()
    assert set(pair) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert pair["token_type"] == "bearer"
    assert pair["expires_in"] == 15 * 60
    auth = {"Authorization": f"Bearer {pair['access_token']}"}
    assert (await client.get("/users/me", headers=auth)).status_code == 200


async def test_token_lifetimes_follow_settings(settings: Settings, session: AsyncSession) -> None:
    async with serve(change(settings, access_token_minutes=7, refresh_token_days=2)) as service:
        await register(service.client)
        pair = (await log_in(service.client)).json()

    claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
    refresh_token = (await session.scalars(select(Login))).one()
    assert claims["exp"] - claims["iat"] == pair["expires_in"] == 7 * 60
    assert timedelta(days=1) < refresh_token.expires_at - refresh_token.created_at < timedelta(days=3)


async def test_failed_logins_return_identical_responses(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await register(client)
    await register(client, "inactive@example.com")
    await session.execute(update(User).where(User.email == "inactive@example.com").values(is_active=False))
    await session.commit()

    failures = [
        await log_in(client, "unknown@example.com"),
        await log_in(client, password="wrong"),
        await log_in(client, "inactive@example.com"),
    ]

    for response in failures:
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json() == {"error": "Incorrect email or password", "type": "authentication_error"}


async def test_login_upgrades_hash_with_old_parameters(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await register(client)
    old_hash = await Passwords(make_settings(argon2_memory_kib=32)).hash(PASSWORD)
    await session.execute(update(User).values(password_hash=old_hash))
    await session.commit()

    updated_at = await session.scalar(select(User.updated_at))
    await session.rollback()  # release SQLite's write lock, which the next login needs

    assert (await log_in(client)).status_code == 200

    new_hash = await session.scalar(select(User.password_hash))
    assert await session.scalar(select(User.updated_at)) == updated_at  # the user has changed nothing
    await session.rollback()
    assert new_hash is not None
    assert new_hash.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert (await log_in(client)).status_code == 200
    assert await session.scalar(select(User.password_hash)) == new_hash


async def test_login_deletes_expired_tokens_of_all_users(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await sign_up(client)
    bob = await sign_up(client, "bob@example.com")
    await session.execute(update(Login).values(expires_at=utc_now() - KEEP_EXPIRED))
    await session.commit()

    await log_in(client, "bob@example.com")

    assert (await session.scalars(select(Login.user_id))).all() == [bob.id]


async def test_login_keeps_tokens_that_have_just_expired(client: httpx.AsyncClient, session: AsyncSession) -> None:
    """Otherwise, a server clock that was briefly ahead would log all users out."""
    ann = await sign_up(client)
    await session.execute(update(Login).values(expires_at=utc_now() - KEEP_EXPIRED + timedelta(minutes=10)))
    await session.commit()

    await log_in(client)

    assert (await session.scalars(select(Login.user_id))).all() == [ann.id] * 2


async def test_login_deletes_a_limited_number_of_tokens(
    client: httpx.AsyncClient, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.service.MAX_DELETED", 2)
    await sign_up(client)
    for _ in range(2):
        await log_in(client)
    await session.execute(update(Login).values(expires_at=utc_now() - KEEP_EXPIRED))
    await session.commit()

    await log_in(client)

    assert await session.scalar(select(func.count()).select_from(Login)) == 2


async def test_login_deletes_tokens_revoked_by_password_change(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    ann = await sign_up(client)
    body = {"current_password": PASSWORD, "new_password": "another password"}
    await client.put("/users/me/password", headers=ann.auth, json=body)

    await log_in(client, password="another password")

    assert await session.scalar(select(func.count()).select_from(Login)) == 1
