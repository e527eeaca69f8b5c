"""Password hashing: its cost, its concurrency and its queue."""

import asyncio
import threading
import time
from unittest import mock

import anyio
import httpx
import structlog
from pwdlib import PasswordHash
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.lifespan import State
from app.security import CONCURRENT_HASHES, WAITING_HASHES, Passwords, TooManyHashes
from app.users.models import User
from tests.conftest import make_settings
from tests.people import PASSWORD, log_in, register


async def test_missing_hash_costs_as_much_as_wrong_password() -> None:
    """Otherwise the response time of a login would tell whether an account exists."""
    passwords = Passwords(make_settings())
    stored = await passwords.hash(PASSWORD)
    verify = PasswordHash.verify_and_update

    with mock.patch.object(PasswordHash, "verify_and_update", autospec=True, side_effect=verify) as spy:
        assert await passwords.verify("wrong", stored) == (False, None)
        assert await passwords.verify("wrong", None) == (False, None)

    hashes = [call.args[2] for call in spy.call_args_list]
    parameters = [password_hash.split("$")[:4] for password_hash in hashes]
    assert parameters[0] == parameters[1]
    assert [len(password_hash) for password_hash in hashes] == [len(stored)] * 2


async def test_every_failed_login_verifies_one_hash(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await register(client)
    await session.execute(update(User).values(is_active=False))
    await session.commit()
    verify = PasswordHash.verify_and_update

    with mock.patch.object(PasswordHash, "verify_and_update", autospec=True, side_effect=verify) as spy:
        await log_in(client, "unknown@example.com")
        await log_in(client, password="wrong")
        await log_in(client)

    assert spy.call_count == 3


async def test_concurrent_hashes_are_limited() -> None:
    passwords = Passwords(make_settings(argon2_memory_kib=1024, argon2_time_cost=2))
    hash_password, running, most = PasswordHash.hash, 0, 0

    def count_and_hash(self: PasswordHash, password: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        result = hash_password(self, password)
        running -= 1
        return result

    with mock.patch.object(PasswordHash, "hash", count_and_hash):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(passwords.hash, PASSWORD)

    assert most <= CONCURRENT_HASHES


async def test_full_hash_queue_returns_503(
    client: httpx.AsyncClient, state: State, logs: list[structlog.typing.EventDict]
) -> None:
    await register(client)
    passwords, may_finish = state["passwords"], threading.Event()
    with mock.patch.object(PasswordHash, "hash", side_effect=lambda _: may_finish.wait(60)):
        pending = [asyncio.create_task(passwords.hash(PASSWORD)) for _ in range(CONCURRENT_HASHES + WAITING_HASHES)]
        await asyncio.sleep(0)  # each task runs until it is queued
        try:
            async with asyncio.timeout(10):
                rejected = await log_in(client)
        finally:
            may_finish.set()
            await asyncio.gather(*pending)

    assert (rejected.status_code, rejected.json()["type"]) == (503, "service_unavailable")
    assert rejected.headers["Retry-After"] == "10"
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "too many passwords are waiting to be hashed"
    ]
    assert (await log_in(client)).status_code == 200


async def test_hash_queue_serves_up_to_its_limit() -> None:
    passwords = Passwords(make_settings())
    limit = CONCURRENT_HASHES + WAITING_HASHES

    results = await asyncio.gather(*(passwords.hash(PASSWORD) for _ in range(limit + 3)), return_exceptions=True)

    assert [type(result) for result in results] == [str] * limit + [TooManyHashes] * 3


async def test_hashing_does_not_block_event_loop() -> None:
    passwords = Passwords(make_settings(argon2_memory_kib=64 * 1024, argon2_time_cost=3, argon2_parallelism=4))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(0.001)
            ticks += 1

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        started_at = time.perf_counter()
        await passwords.hash(PASSWORD)
        seconds = time.perf_counter() - started_at
        group.cancel_scope.cancel()

    assert ticks >= 2, f"the event loop was blocked for {seconds:.3f} s"
