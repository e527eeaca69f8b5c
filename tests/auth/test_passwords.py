"""Password hashing: its cost, its concurrency limit and its queue."""

import asyncio
import threading
import time
from unittest import mock

import anyio
import httpx
import pytest
import structlog
from argon2 import PasswordHasher
from argon2.exceptions import HashingError, VerificationError
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.lifespan import State
from app.security import MAX_CONCURRENT_HASHES, MAX_QUEUED_HASHES, HashingUnavailable, Passwords
from app.users.models import User
from tests.conftest import make_settings
from tests.people import PASSWORD, log_in, register


async def test_missing_hash_costs_as_much_as_wrong_password() -> None:
    """If logins failed faster for unknown accounts, the response time would reveal which accounts exist."""
    passwords = Passwords(make_settings())
    stored = await passwords.hash(PASSWORD)
    verify = PasswordHasher.verify

    with mock.patch.object(PasswordHasher, "verify", autospec=True, side_effect=verify) as spy:
        assert await passwords.verify("wrong", stored) == (False, None)
        assert await passwords.verify("wrong", None) == (False, None)

    hashes = [call.args[1] for call in spy.call_args_list]
    parameters = [password_hash.split("$")[:4] for password_hash in hashes]
    assert parameters[0] == parameters[1]
    assert [len(password_hash) for password_hash in hashes] == [len(stored)] * 2


async def test_every_failed_login_verifies_one_hash(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await register(client)
    await session.execute(update(User).values(is_active=False))
    await session.commit()
    verify = PasswordHasher.verify

    with mock.patch.object(PasswordHasher, "verify", autospec=True, side_effect=verify) as spy:
        await log_in(client, "unknown@example.com")
        await log_in(client, password="wrong")
        await log_in(client)

    assert spy.call_count == 3


async def test_concurrent_hashes_are_limited() -> None:
    passwords = Passwords(make_settings(argon2_memory_kib=1024, argon2_time_cost=2))
    hash_password, running, most = PasswordHasher.hash, 0, 0

    def count_and_hash(self: PasswordHasher, password: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        result = hash_password(self, password)
        running -= 1
        return result

    with mock.patch.object(PasswordHasher, "hash", count_and_hash):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(passwords.hash, PASSWORD)

    assert most <= MAX_CONCURRENT_HASHES


async def test_full_hash_queue_returns_503(
    client: httpx.AsyncClient, state: State, logs: list[structlog.typing.EventDict]
) -> None:
    await register(client)
    passwords, may_finish = state["passwords"], threading.Event()
    with mock.patch.object(PasswordHasher, "hash", side_effect=lambda _: may_finish.wait(60)):
        pending = [
            asyncio.create_task(passwords.hash(PASSWORD)) for _ in range(MAX_CONCURRENT_HASHES + MAX_QUEUED_HASHES)
        ]
        await asyncio.sleep(0)  # let every task run until it is queued
        try:
            async with asyncio.timeout(10):
                rejected = await log_in(client)
        finally:
            may_finish.set()
            await asyncio.gather(*pending)

    assert (rejected.status_code, rejected.json()["type"]) == (503, "service_unavailable")
    assert rejected.headers["Retry-After"] == "10"
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["a password cannot be hashed"]
    assert (await log_in(client)).status_code == 200


async def test_hash_queue_serves_up_to_its_limit() -> None:
    passwords = Passwords(make_settings())
    limit = MAX_CONCURRENT_HASHES + MAX_QUEUED_HASHES

    results = await asyncio.gather(*(passwords.hash(PASSWORD) for _ in range(limit + 3)), return_exceptions=True)

    assert [type(result) for result in results] == [str] * limit + [HashingUnavailable] * 3


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


@pytest.mark.parametrize("error", [VerificationError("Threading failure"), MemoryError()])
async def test_hashing_failure_returns_503(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict], error: Exception
) -> None:
    """If the container is out of memory or threads, hashing fails. The password must then not be reported as wrong."""
    await register(client)

    with mock.patch.object(PasswordHasher, "verify", side_effect=error):
        login = await log_in(client)
    with mock.patch.object(PasswordHasher, "hash", side_effect=HashingError("Memory allocation error")):
        registration = await register(client, "bob@example.com")

    assert [response.status_code for response in (login, registration)] == [503, 503]
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["a password cannot be hashed"] * 2


async def test_failure_to_start_a_thread_raises_hashing_unavailable() -> None:
    """A container that has reached its process limit (`pids`) cannot start threads."""
    no_threads = mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread"))
    with no_threads, pytest.raises(HashingUnavailable):
        await Passwords(make_settings()).verify(PASSWORD, None)


async def test_other_runtime_error_is_raised() -> None:
    fails = mock.patch.object(PasswordHasher, "hash", side_effect=RuntimeError("a bug"))
    with fails, pytest.raises(RuntimeError, match="a bug"):
        await Passwords(make_settings()).hash(PASSWORD)


@pytest.mark.parametrize("stored", ["!", "", "$2b$12$0123456789012345678901uabcdefghijklmnopqrstuvwxyzABCDE"])
async def test_hash_of_another_algorithm_matches_no_password(
    client: httpx.AsyncClient, session: AsyncSession, stored: str
) -> None:
    """Accounts imported from another system may have a bcrypt hash, or no hash at all."""
    await register(client)
    await session.execute(update(User).values(password_hash=stored))
    await session.commit()

    assert (await log_in(client)).status_code == 401


async def test_wrong_password_costs_the_same_for_a_cheaper_stored_hash() -> None:
    """After a cost increase, verifying an old hash takes less time.

    Without extra work, a failed login would therefore be faster and reveal that the account exists.
    """
    cheap = await Passwords(make_settings(argon2_memory_kib=1024, argon2_time_cost=2)).hash(PASSWORD)
    passwords = Passwords(make_settings(argon2_memory_kib=2048, argon2_time_cost=5))
    passes: list[int] = []

    def note(self: PasswordHasher, password: str) -> str:  # noqa: ARG001  must have the signature of `hash`
        passes.append(self.time_cost * self.memory_cost)
        return ""

    with mock.patch.object(PasswordHasher, "hash", note):
        assert await passwords.verify("wrong", cheap) == (False, None)

    assert passes == [5 * 2048 - 2 * 1024]


async def test_wrong_password_for_a_more_expensive_hash_adds_no_extra_cost() -> None:
    dear = await Passwords(make_settings(argon2_memory_kib=2048, argon2_time_cost=5)).hash(PASSWORD)
    passwords = Passwords(make_settings(argon2_memory_kib=1024, argon2_time_cost=2))

    with mock.patch.object(PasswordHasher, "hash") as spy:
        assert await passwords.verify("wrong", dear) == (False, None)

    spy.assert_not_called()
