"""Race conditions between a request that verifies a password, and changes of the same account."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock
from uuid import uuid4

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.service import KEEP_EXPIRED
from app.database import utc_now
from app.security import Passwords
from app.users.models import Login, User
from tests.conftest import make_settings, wait_for_blocked_statement
from tests.people import PASSWORD, log_in, register, sign_up


@asynccontextmanager
async def verification_in_progress(
    request: Coroutine[Any, Any, httpx.Response],
) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """Start a request, and pause it after the password check until the `with` block ends."""
    is_verified, may_continue = threading.Event(), threading.Event()
    verify = PasswordHasher.verify

    def verify_and_wait(self: PasswordHasher, password_hash: str, password: str) -> bool:
        result = verify(self, password_hash, password)
        is_verified.set()
        may_continue.wait(60)
        return result

    with mock.patch.object(PasswordHasher, "verify", verify_and_wait):
        task = asyncio.create_task(request)
        assert await asyncio.to_thread(is_verified.wait, 60)
    try:
        yield task
    finally:
        may_continue.set()


async def test_password_change_during_login_is_not_overwritten(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    """The login upgrades the hash of the old password. It must not overwrite the hash of the new password."""
    await register(client)
    old_hash = await Passwords(make_settings(argon2_memory_kib=32)).hash(PASSWORD)
    await session.execute(update(User).values(password_hash=old_hash))
    await session.commit()

    async with verification_in_progress(log_in(client)) as login:
        await session.execute(update(User).values(password_hash="changed", security_stamp=uuid4()))
        await session.commit()
    await login

    assert await session.scalar(select(User.password_hash)) == "changed"


async def test_account_deletion_during_login_returns_401(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await register(client)

    async with verification_in_progress(log_in(client)) as login:
        await session.execute(delete(User))
        await session.commit()
    response = await login

    assert response.status_code == 401
    assert response.json()["error"] == "Incorrect email or password"


async def test_password_change_during_login_returns_401(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    body = {"current_password": PASSWORD, "new_password": "another password"}

    async with verification_in_progress(log_in(client)) as login:
        assert (await client.put("/users/me/password", headers=ann.auth, json=body)).status_code == 204
        newer_login = await log_in(client, password="another password")
    response = await login

    assert response.status_code == 401
    refresh_token = newer_login.json()["refresh_token"]
    assert (await client.post("/auth/refresh", json={"refresh_token": refresh_token})).status_code == 200


async def test_concurrent_login_and_account_deletion_do_not_deadlock(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str
) -> None:
    await sign_up(client)
    await session.execute(update(Login).values(expires_at=utc_now() - KEEP_EXPIRED))
    await session.commit()

    await session.execute(select(User.id).with_for_update())  # the first step of deleting an account
    login = asyncio.create_task(log_in(client))
    await wait_for_blocked_statement(database_url)  # the login waits for this lock
    await session.execute(delete(User))  # cascades to the expired token, which the login also deletes
    await session.commit()

    assert (await login).status_code == 401


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has no row locks
async def test_login_does_not_wait_for_a_locked_expired_login(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await sign_up(client)
    await session.execute(update(Login).values(expires_at=utc_now() - KEEP_EXPIRED))
    await session.commit()
    await session.execute(select(Login).with_for_update())

    response = await log_in(client)

    assert response.status_code == 200
    assert await session.scalar(select(func.count()).select_from(Login)) == 2


async def test_deactivation_during_password_change_returns_401(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    ann = await sign_up(client)
    body = {"current_password": PASSWORD, "new_password": "another password"}
    before = await session.scalar(select(User.password_hash))

    async with verification_in_progress(client.put("/users/me/password", headers=ann.auth, json=body)) as change:
        await session.execute(update(User).values(is_active=False, security_stamp=uuid4()))
        await session.commit()
    response = await change

    assert response.status_code == 401
    assert await session.scalar(select(User.password_hash)) == before


async def test_upgrade_of_the_hash_during_password_change_does_not_affect_it(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    """If the hash parameters have changed, a concurrent login replaces the stored hash.

    The password change must succeed anyway.
    """
    ann = await sign_up(client)
    body = {"current_password": PASSWORD, "new_password": "another password"}

    async with verification_in_progress(client.put("/users/me/password", headers=ann.auth, json=body)) as change:
        await session.execute(update(User).values(password_hash="upgraded"))
        await session.commit()
    response = await change

    assert response.status_code == 204
    assert (await log_in(client, password="another password")).status_code == 200
