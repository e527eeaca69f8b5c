"""Refresh tokens: each can be used once, and reuse ends the login it belongs to."""

from datetime import timedelta

import anyio
import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.models import RefreshToken
from app.database import utc_now
from app.users.models import User
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


async def test_reused_refresh_token_ends_login(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    other_login = (await log_in(client)).json()["refresh_token"]
    newest = (await refresh(client, ann.refresh_token)).json()["refresh_token"]

    reused = await refresh(client, ann.refresh_token)

    assert reused.status_code == 401
    assert reused.json() == {"error": "Invalid refresh token", "type": "authentication_error"}
    assert (await refresh(client, newest)).status_code == 401
    assert (await refresh(client, other_login)).status_code == 200


async def test_concurrent_refreshes_issue_one_pair_and_end_login(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    responses: list[httpx.Response] = []

    async def refresh_once() -> None:
        responses.append(await refresh(client, ann.refresh_token))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(refresh_once)

    successful = [response for response in responses if response.status_code == 200]
    assert len(successful) == 1
    assert {response.status_code for response in responses} == {200, 401}
    assert (await refresh(client, successful[0].json()["refresh_token"])).status_code == 401


async def test_refresh_extends_expiry(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    soon = utc_now() + timedelta(minutes=1)
    await session.execute(update(RefreshToken).values(expires_at=soon))
    await session.commit()

    await refresh(client, ann.refresh_token)

    expires_at = await session.scalar(select(RefreshToken.expires_at))
    assert expires_at is not None
    assert timedelta(days=29) < expires_at - soon < timedelta(days=31)


async def test_refresh_by_inactive_user_returns_401(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    await session.execute(update(User).values(is_active=False))
    await session.commit()

    assert (await refresh(client, ann.refresh_token)).status_code == 401


async def test_expired_refresh_token_returns_401(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)
    await session.execute(update(RefreshToken).values(expires_at=utc_now()))
    await session.commit()

    assert (await refresh(client, ann.refresh_token)).status_code == 401


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


async def test_database_stores_only_token_hash(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann = await sign_up(client)

    row = (await session.scalars(select(RefreshToken))).one()

    assert len(row.secret_hash) == 32
    assert row.secret_hash not in ann.refresh_token.encode()
