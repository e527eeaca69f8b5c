"""Who has the password gets tokens; nobody learns why somebody else does not."""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock

import anyio
import httpx
import jwt
import pytest
import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import NAME
from app.auth.models import RefreshToken
from app.database import utc_now
from app.lifespan import State
from app.security import CONCURRENT_HASHES, WAITING_HASHES, Passwords, Tokens, TooManyHashes
from app.settings import Settings
from app.users.models import User
from tests.conftest import SECRET_KEY, change, serve, wait_for_blocked_statement
from tests.people import PASSWORD, log_in, register, sign_up


async def test_a_login_gives_a_pair_of_tokens(client: httpx.AsyncClient) -> None:
    await register(client)

    response = await log_in(client, "ANN@example.com")

    assert response.status_code == 200
    pair = response.json()
    assert set(pair) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert pair["token_type"] == "bearer"
    assert pair["expires_in"] == 15 * 60
    auth = {"Authorization": f"Bearer {pair['access_token']}"}
    assert (await client.get("/users/me", headers=auth)).status_code == 200


async def test_tokens_last_as_long_as_is_set(settings: Settings, session: AsyncSession) -> None:
    async with serve(change(settings, access_token_minutes=7, refresh_token_days=2)) as service:
        await register(service.client)
        pair = (await log_in(service.client)).json()

    claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
    refresh_token = (await session.scalars(select(RefreshToken))).one()
    assert claims["exp"] - claims["iat"] == pair["expires_in"] == 7 * 60
    assert timedelta(days=1) < refresh_token.expires_at - refresh_token.created_at < timedelta(days=3)


async def test_every_failed_login_is_answered_alike(client: httpx.AsyncClient, session: AsyncSession) -> None:
    await register(client)
    await register(client, "inactive@example.com")
    await session.execute(update(User).where(User.email == "inactive@example.com").values(is_active=False))
    await session.commit()

    failures = [
        await log_in(client, "nobody@example.com"),
        await log_in(client, password="wrong"),
        await log_in(client, "inactive@example.com"),
    ]

    for response in failures:
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json() == {"error": "Incorrect email or password", "type": "authentication_error"}


async def test_every_failed_login_hashes_once(state: State) -> None:
    """The time of a login is that of its hash, so an address that nobody has costs one too, as dear as others."""
    passwords = state["passwords"]
    stored = await passwords.hash(PASSWORD)
    verify = passwords._hasher.verify_and_update  # noqa: SLF001  what does the work

    with mock.patch.object(passwords._hasher, "verify_and_update", wraps=verify) as spy:  # noqa: SLF001  the same
        assert await passwords.verify("wrong", stored) == (False, None)
        assert await passwords.verify("wrong", None) == (False, None)

    parameters = [call.args[1].split("$")[:4] for call in spy.call_args_list]
    assert parameters[0] == parameters[1]
    assert [len(call.args[1]) for call in spy.call_args_list] == [len(stored)] * 2


async def test_every_failed_login_asks_for_that_hash(
    client: httpx.AsyncClient, state: State, session: AsyncSession
) -> None:
    await register(client)
    await session.execute(update(User).values(is_active=False))
    await session.commit()

    with mock.patch.object(state["passwords"], "verify", wraps=state["passwords"].verify) as verify:
        await log_in(client, "nobody@example.com")
        await log_in(client, password="wrong")
        await log_in(client)

    assert verify.await_count == 3


async def test_no_more_hashes_are_made_at_once_than_there_is_memory_for() -> None:
    passwords = Passwords(memory_kib=1024, time_cost=2, parallelism=1)
    hash_one, at_once, most = passwords._hasher.hash, 0, 0  # noqa: SLF001  what does the work

    def count(password: str) -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        result = hash_one(password)
        at_once -= 1
        return result

    with mock.patch.object(passwords._hasher, "hash", count):  # noqa: SLF001  the same
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(passwords.hash, PASSWORD)

    assert most <= CONCURRENT_HASHES


async def test_who_would_wait_too_long_for_a_hash_is_refused_at_once(
    client: httpx.AsyncClient, state: State, logs: list[structlog.typing.EventDict]
) -> None:
    await register(client)
    passwords, may_end = state["passwords"], threading.Event()
    with mock.patch.object(passwords._hasher, "hash", side_effect=lambda _: may_end.wait(60)):  # noqa: SLF001  as above
        waiting = [asyncio.create_task(passwords.hash(PASSWORD)) for _ in range(CONCURRENT_HASHES + WAITING_HASHES)]
        await asyncio.sleep(0)  # all of them stand in line
        try:
            async with asyncio.timeout(10):
                refused = await log_in(client)
        finally:
            may_end.set()
            await asyncio.gather(*waiting)

    assert (refused.status_code, refused.json()["type"]) == (503, "service_unavailable")
    assert refused.headers["Retry-After"] == "10"
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "too many passwords wait to be hashed"
    ]
    assert (await log_in(client)).status_code == 200


async def test_the_last_who_may_wait_for_a_hash_gets_it() -> None:
    passwords = Passwords(memory_kib=32, time_cost=1, parallelism=1)
    served = CONCURRENT_HASHES + WAITING_HASHES

    answers = await asyncio.gather(*(passwords.hash(PASSWORD) for _ in range(served + 3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [str] * served + [TooManyHashes] * 3


def test_a_key_that_is_too_short_signs_nothing() -> None:
    tokens = Tokens(secret_key="short", access_lifetime=timedelta(1), refresh_lifetime=timedelta(1))

    with pytest.raises(jwt.InvalidKeyError):
        tokens.issue(1)


async def test_hashing_does_not_hold_up_the_event_loop() -> None:
    passwords = Passwords(memory_kib=64 * 1024, time_cost=3, parallelism=4)
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

    assert ticks >= 2, f"the loop stood still for {seconds:.3f} s"


async def test_a_hash_of_former_parameters_is_renewed_at_login(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    await register(client)
    old = await Passwords(memory_kib=32, time_cost=1, parallelism=1).hash(PASSWORD)
    await session.execute(update(User).values(password_hash=old))
    await session.commit()

    assert (await log_in(client)).status_code == 200

    new = await session.scalar(select(User.password_hash))
    await session.rollback()  # or the next login would wait for SQLite's one lock
    assert new is not None
    assert new.startswith("$argon2id$v=19$m=64,t=1,p=1$")
    assert (await log_in(client)).status_code == 200
    assert await session.scalar(select(User.password_hash)) == new


async def test_a_password_that_is_changed_during_a_login_stays_changed(
    client: httpx.AsyncClient, state: State, session: AsyncSession
) -> None:
    """The login would renew the hash, which is another one by then."""
    await register(client)
    old = await Passwords(memory_kib=32, time_cost=1, parallelism=1).hash(PASSWORD)
    await session.execute(update(User).values(password_hash=old))
    await session.commit()
    verify = state["passwords"].verify

    async def verify_while_changed(password: str, password_hash: str | None) -> tuple[bool, str | None]:
        await session.execute(update(User).values(password_hash="changed", credentials_version=2))
        await session.commit()
        return await verify(password, password_hash)

    with mock.patch.object(state["passwords"], "verify", verify_while_changed):
        await log_in(client)

    assert await session.scalar(select(User.password_hash)) == "changed"


async def test_a_user_deleted_during_the_login_does_not_get_in(
    client: httpx.AsyncClient, state: State, session: AsyncSession
) -> None:
    await register(client)
    verify = state["passwords"].verify

    async def verify_while_deleted(password: str, password_hash: str | None) -> tuple[bool, str | None]:
        await session.execute(delete(User))
        await session.commit()
        return await verify(password, password_hash)

    with mock.patch.object(state["passwords"], "verify", verify_while_deleted):
        response = await log_in(client)

    assert response.status_code == 401
    assert response.json()["error"] == "Incorrect email or password"


async def test_a_login_that_a_password_change_overtakes_does_not_get_in(
    client: httpx.AsyncClient, state: State
) -> None:
    ann = await sign_up(client)
    verify = state["passwords"].verify
    change = {"current_password": PASSWORD, "new_password": "another password"}

    async def verify_while_changed(password: str, password_hash: str | None) -> tuple[bool, str | None]:
        result = await verify(password, password_hash)
        patch.stop()
        assert (await client.put("/users/me/password", headers=ann.auth, json=change)).status_code == 204
        current.append(await log_in(client, password="another password"))
        return result

    current: list[httpx.Response] = []
    patch = mock.patch.object(state["passwords"], "verify", verify_while_changed)
    patch.start()
    overtaken = await log_in(client)

    assert overtaken.status_code == 401
    refresh_token = current[0].json()["refresh_token"]
    assert (await client.post("/auth/refresh", json={"refresh_token": refresh_token})).status_code == 200


async def test_a_login_and_a_deletion_do_not_wait_for_each_other(
    client: httpx.AsyncClient, session: AsyncSession, database_url: str
) -> None:
    await sign_up(client)
    await session.execute(update(RefreshToken).values(expires_at=utc_now()))
    await session.commit()

    await session.execute(select(User.id).with_for_update())  # as the deletion begins
    login = asyncio.create_task(log_in(client))
    await wait_for_blocked_statement(database_url)  # the login has come as far as it can
    await session.execute(delete(User))  # and with the user the token, which the login wants to sweep away
    await session.commit()

    assert (await login).status_code == 401


async def test_dead_logins_are_swept_away_by_their_users_next(client: httpx.AsyncClient, session: AsyncSession) -> None:
    ann, bob = await sign_up(client), await sign_up(client, "bob@example.com")
    for _ in range(3):
        await log_in(client)
    await session.execute(update(RefreshToken).values(expires_at=utc_now()))
    await session.commit()

    await log_in(client)

    owners = await session.scalars(select(RefreshToken.user_id).order_by(RefreshToken.user_id))
    assert owners.all() == [ann.id, bob.id]


async def test_logins_that_a_new_password_ended_are_swept_away_too(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    ann = await sign_up(client)
    change = {"current_password": PASSWORD, "new_password": "another password"}
    await client.put("/users/me/password", headers=ann.auth, json=change)

    await log_in(client, password="another password")

    assert await session.scalar(select(func.count()).select_from(RefreshToken)) == 1


# Access tokens -----------------------------------------------------------------------------------------------------


def _claims(user_id: int, **changes: object) -> dict[str, Any]:
    now = int(time.time())
    claims = {"sub": str(user_id), "iss": NAME, "aud": NAME, "iat": now, "exp": now + 60} | changes
    return {name: value for name, value in claims.items() if value is not None}


@pytest.mark.parametrize("seconds_ahead", [0, 5])
async def test_a_token_of_ours_is_believed_though_a_clock_be_ahead(
    client: httpx.AsyncClient, seconds_ahead: int
) -> None:
    ann = await sign_up(client)
    token = jwt.encode(_claims(ann.id, iat=int(time.time()) + seconds_ahead), SECRET_KEY, "HS256")

    response = await client.get("/users/me", headers={"Authorization": f"Bearer {token}"})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda user: jwt.encode(_claims(user), "another key of 32 bytes or even more", "HS256"), id="key"),
        pytest.param(lambda user: jwt.encode(_claims(user), "", "none"), id="no algorithm"),
        pytest.param(lambda user: jwt.encode(_claims(user), SECRET_KEY * 2, "HS512"), id="other algorithm"),
        pytest.param(lambda user: jwt.encode(_claims(user, exp=1), SECRET_KEY), id="expired"),
        pytest.param(lambda user: jwt.encode(_claims(user, aud="x"), SECRET_KEY), id="audience"),
        pytest.param(lambda user: jwt.encode(_claims(user, iss="x"), SECRET_KEY), id="issuer"),
        pytest.param(lambda user: jwt.encode(_claims(user, sub="me"), SECRET_KEY), id="subject"),
        pytest.param(lambda user: jwt.encode(_claims(user, sub=None), SECRET_KEY), id="no subject"),
        pytest.param(lambda user: jwt.encode(_claims(user, exp=None), SECRET_KEY), id="no end"),
        pytest.param(lambda user: jwt.encode(_claims(user, aud=None), SECRET_KEY), id="no audience"),
        pytest.param(lambda user: jwt.encode(_claims(user, iss=None), SECRET_KEY), id="no issuer"),
        pytest.param(lambda user: jwt.encode(_claims(user, iat=None), SECRET_KEY), id="no beginning"),
    ],
)
async def test_a_token_that_is_not_ours_is_not(client: httpx.AsyncClient, forge: Callable[[int], str]) -> None:
    ann = await sign_up(client)

    response = await client.get("/users/me", headers={"Authorization": f"Bearer {forge(ann.id)}"})

    assert response.status_code == 401


async def test_a_refresh_token_is_no_access_token(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await client.get("/users/me", headers={"Authorization": f"Bearer {ann.refresh_token}"})

    assert response.status_code == 401


def test_the_key_stays_out_of_sight(settings: Settings) -> None:
    assert SECRET_KEY not in repr(settings)
    assert SECRET_KEY not in settings.model_dump_json()
