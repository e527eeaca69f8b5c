"""Each refresh token can be used once. If it is used again, the login ends, except during a short overlap."""

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from datetime import timedelta
from hashlib import sha256

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import utc_now
from app.settings import Settings
from app.users.models import Login, User
from tests.conftest import SECRET_KEY, change, serve
from tests.people import log_in, sign_up


async def refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/auth/refresh", json={"refresh_token": token})


async def log_out(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/auth/logout", json={"refresh_token": token})


async def test_refresh_returns_new_token_pair(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await refresh(client, ann.refresh_token)

    assert response.status_code == 200
    pair = response.json()
    assert pair["refresh_token"] != ann.refresh_token
    auth = {"Authorization": f"Bearer {pair['access_token']}"}
    assert (await client.get("/users/me", headers=auth)).json()["id"] == ann.id
    assert (await refresh(client, pair["refresh_token"])).status_code == 200


@pytest.fixture
async def later(session: AsyncSession) -> Callable[[], Awaitable[None]]:
    """Return a function that ends the overlap, during which used refresh tokens are still accepted."""

    async def let_overlap_end() -> None:
        await session.execute(update(Login).values(rotated_at=utc_now() - timedelta(seconds=11)))
        await session.commit()

    return let_overlap_end


async def test_token_used_again_within_overlap_returns_same_next_token(client: httpx.AsyncClient) -> None:
    """Two browser tabs may send the same token. A client may also send it again if the first response was lost."""
    ann = await sign_up(client)

    responses = [await refresh(client, ann.refresh_token) for _ in range(5)]

    assert {response.status_code for response in responses} == {200}
    (next_token,) = {response.json()["refresh_token"] for response in responses}
    for response in responses:
        auth = {"Authorization": f"Bearer {response.json()['access_token']}"}
        assert (await client.get("/users/me", headers=auth)).json()["id"] == ann.id
    assert (await refresh(client, next_token)).status_code == 200


async def test_concurrent_refreshes_return_same_next_token(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    responses = await asyncio.gather(*(refresh(client, ann.refresh_token) for _ in range(5)))

    assert {response.status_code for response in responses} == {200}
    (next_token,) = {response.json()["refresh_token"] for response in responses}
    assert (await refresh(client, next_token)).status_code == 200


async def test_token_used_again_after_overlap_ends_login(
    client: httpx.AsyncClient, later: Callable[[], Awaitable[None]]
) -> None:
    ann = await sign_up(client)
    other_login = (await log_in(client)).json()["refresh_token"]
    newest = (await refresh(client, ann.refresh_token)).json()["refresh_token"]
    await later()

    reused = await refresh(client, ann.refresh_token)

    assert reused.status_code == 401
    assert reused.json() == {"error": "Invalid refresh token", "type": "authentication_error"}
    assert (await refresh(client, newest)).status_code == 401
    assert (await refresh(client, other_login)).status_code == 200


async def test_older_token_used_again_within_overlap_ends_login(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    second = (await refresh(client, ann.refresh_token)).json()["refresh_token"]
    third = (await refresh(client, second)).json()["refresh_token"]

    reused = await refresh(client, ann.refresh_token)

    assert reused.status_code == 401
    assert (await refresh(client, third)).status_code == 401


async def test_overlap_of_zero_ends_login_at_second_use(settings: Settings) -> None:
    async with serve(change(settings, refresh_overlap_seconds=0)) as service:
        ann = await sign_up(service.client)
        newest = (await refresh(service.client, ann.refresh_token)).json()["refresh_token"]

        assert (await refresh(service.client, ann.refresh_token)).status_code == 401
        assert (await refresh(service.client, newest)).status_code == 401


async def test_overlap_of_zero_rejects_second_use_that_began_before_first(settings: Settings) -> None:
    async with serve(change(settings, refresh_overlap_seconds=0)) as service:
        ann = await sign_up(service.client)
        await refresh(service.client, ann.refresh_token)
        async with AsyncSession(service.state["engine"]) as session, session.begin():
            await session.execute(update(Login).values(rotated_at=utc_now() + timedelta(seconds=1)))

        assert (await refresh(service.client, ann.refresh_token)).status_code == 401


async def test_overlap_continues_after_change_of_secret_key(settings: Settings) -> None:
    async with serve(settings) as before:
        ann = await sign_up(before.client)
        next_token = (await refresh(before.client, ann.refresh_token)).json()["refresh_token"]
    new_key = change(settings, secret_key="a new secret key, of 32 bytes or more", secret_key_previous=SECRET_KEY)
    async with serve(new_key) as after:
        repeated = await refresh(after.client, ann.refresh_token)

        assert repeated.json()["refresh_token"] == next_token
        assert (await refresh(after.client, next_token)).status_code == 200


async def test_overlap_does_not_extend_expiry(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    await refresh(client, ann.refresh_token)
    soon = utc_now() + timedelta(minutes=1)
    await session.execute(update(Login).values(expires_at=soon))
    await session.commit()

    assert (await refresh(client, ann.refresh_token)).status_code == 200

    assert await session.scalar(select(Login.expires_at)) == soon


async def test_refresh_extends_expiry(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    soon = utc_now() + timedelta(minutes=1)
    await session.execute(update(Login).values(expires_at=soon))
    await session.commit()

    await refresh(client, ann.refresh_token)

    expires_at = await session.scalar(select(Login.expires_at))
    assert expires_at is not None
    assert timedelta(days=29) < expires_at - soon < timedelta(days=31)


async def test_refresh_by_inactive_user_returns_401(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    await session.execute(update(User).values(is_active=False))
    await session.commit()

    assert (await refresh(client, ann.refresh_token)).status_code == 401


async def test_expired_refresh_token_returns_401_and_is_not_deleted(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    """If a refresh deleted an expired token, a server clock that was briefly ahead would log users out permanently."""
    ann = await sign_up(client)
    for expires_at, expected in ((-60, 401), (-2, 200)):
        await session.execute(update(Login).values(expires_at=utc_now() + timedelta(seconds=expires_at)))
        await session.commit()

        assert (await refresh(client, ann.refresh_token)).status_code == expected


@pytest.mark.parametrize("token", ["", "x", "é", "A" * 64, "A" * 63, "=" * 64])
async def test_malformed_refresh_token_returns_401(client: httpx.AsyncClient, token: str) -> None:
    assert (await refresh(client, token)).status_code == 401
    assert (await log_out(client, token)).status_code == 204


async def test_refresh_token_with_nul_returns_422(client: httpx.AsyncClient) -> None:
    assert (await refresh(client, "\x00")).status_code == 422
    assert (await log_out(client, "\x00")).status_code == 422


async def test_logout_ends_login(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await log_out(client, ann.refresh_token)

    assert (response.status_code, response.content) == (204, b"")
    assert (await refresh(client, ann.refresh_token)).status_code == 401
    assert (await log_out(client, ann.refresh_token)).status_code == 204


async def test_logout_with_used_token_ends_login(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    newest = (await refresh(client, ann.refresh_token)).json()["refresh_token"]

    await log_out(client, ann.refresh_token)

    assert (await refresh(client, newest)).status_code == 401


@pytest.mark.parametrize("of_another_login", [False, True])
async def test_forged_secret_does_not_end_login(client: httpx.AsyncClient, of_another_login: bool) -> None:
    """Access tokens and the log contain the id of a login, so the id alone must not be enough to end the login."""
    ann, bob = await sign_up(client), await sign_up(client, "bob@example.com")
    secret = urlsafe_b64decode(bob.refresh_token)[16:] if of_another_login else bytes(32)
    forged = urlsafe_b64encode(urlsafe_b64decode(ann.refresh_token)[:16] + secret).decode()

    assert (await refresh(client, forged)).status_code == 401
    assert (await log_out(client, forged)).status_code == 204

    assert (await client.get("/users/me", headers=ann.auth)).status_code == 200
    assert (await refresh(client, ann.refresh_token)).status_code == 200


@pytest.mark.parametrize("with_used_token", [False, True])
async def test_logout_after_change_of_secret_key_ends_login(settings: Settings, with_used_token: bool) -> None:
    async with serve(settings) as before:
        ann = await sign_up(before.client)
        newest = (await refresh(before.client, ann.refresh_token)).json()["refresh_token"]
    async with serve(change(settings, secret_key="a new secret key, of 32 bytes or more")) as after:
        await log_out(after.client, ann.refresh_token if with_used_token else newest)

        assert (await refresh(after.client, newest)).status_code == 401


@pytest.mark.parametrize("previous_key", [None, SECRET_KEY])
async def test_token_used_again_after_change_of_secret_key_ends_login(
    settings: Settings, session: AsyncSession, previous_key: str | None
) -> None:
    async with serve(settings) as before:
        ann = await sign_up(before.client)
        newest = (await refresh(before.client, ann.refresh_token)).json()["refresh_token"]
        await session.execute(update(Login).values(rotated_at=utc_now() - timedelta(seconds=11)))
        await session.commit()
    new_key = change(settings, secret_key="a new secret key, of 32 bytes or more", secret_key_previous=previous_key)
    async with serve(new_key) as after:
        assert (await refresh(after.client, ann.refresh_token)).status_code == 401
        assert (await refresh(after.client, newest)).status_code == 401


async def test_database_stores_only_token_hash(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)

    row = (await session.scalars(select(Login))).one()

    secret = urlsafe_b64decode(ann.refresh_token)[16:]
    assert row.secret_hash == sha256(secret).digest()
