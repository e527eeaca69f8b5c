"""Passwords, tokens and keys never appear in a log line, error, repr or database row."""

from base64 import urlsafe_b64decode

import httpx
import pytest
from gunicorn_process import Start
from processes import TIMEOUT
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX
from app.auth.schemas import Credentials, RefreshRequest, TokenPair
from app.database import Base
from app.settings import Settings
from app.users.schemas import PasswordChange, UserCreate
from tests.conftest import SECRET_KEY, Service, change
from tests.people import log_in, register

# Every secret in this test contains this text.
MARK = "hunter2"
KEY = f"a key of 32 bytes or more, {MARK}"
PASSWORD, NEW_PASSWORD = f"the password {MARK}", f"the new password {MARK}"
JSON = {"Content-Type": "application/json"}


async def use_every_secret(client: httpx.AsyncClient) -> tuple[list[str], list[httpx.Response]]:
    """Register, log in, refresh, change the password, and send invalid requests that contain secrets.

    Returns:
        All tokens, and the responses to the invalid requests.
    """
    await register(client, fields={"password": PASSWORD})
    pair = (await log_in(client, password=PASSWORD)).json()
    refreshed = (await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]})).json()
    auth = {"Authorization": f"Bearer {pair['access_token']}"}
    errors = [
        await register(client, fields={"password": PASSWORD}),
        await register(client, "b@example.com", fields={"password": MARK}),
        await register(client, "b@example.com", fields={"password": {MARK: MARK}, f"a {MARK}": MARK}),
        await register(client, f"{MARK}@{MARK}", fields={"password": PASSWORD}),
        await client.post("/users/", content=f'{{"password": "{PASSWORD}"', headers=JSON),
        await client.post("/users/", content=PASSWORD),
        await log_in(client, password=f"{MARK}, but another"),
        await log_in(client, password=PASSWORD * 10),
        await client.get("/users/me", headers={"Authorization": auth["Authorization"] + "x"}),
        await client.put(
            "/users/me/password", headers=auth, json={"current_password": MARK, "new_password": NEW_PASSWORD}
        ),
        await client.post("/crash", headers=auth, json={"email": "ann@example.com", "password": PASSWORD}),
        await client.get(f"/users/?q={MARK}&cursor={MARK}", headers=auth),
    ]
    passwords = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert (await client.put("/users/me/password", headers=auth, json=passwords)).status_code == 204
    errors.append(await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]}))
    last = (await log_in(client, password=NEW_PASSWORD)).json()
    tokens = [token for found in (pair, refreshed, last) for token in (found["access_token"], found["refresh_token"])]
    return tokens, errors


async def rename_column(session: AsyncSession, old: str, new: str) -> None:
    connection = await session.connection()
    await connection.exec_driver_sql(f"ALTER TABLE users RENAME COLUMN {old} TO {new}")
    await session.commit()


async def read_all_values(session: AsyncSession) -> list[object]:
    """Return every value in the database."""
    tables = Base.metadata.tables.values()
    values = [value for table in tables for row in await session.execute(select(table)) for value in row]
    await session.rollback()
    return values


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_secret_is_logged_returned_or_stored(
    log_format: str, start_service: Start, database_url: str, session: AsyncSession
) -> None:
    verbose = {"LOG_LEVEL": "debug", "LOG_FORMAT": log_format}
    cheap = {"ARGON2_MEMORY_KIB": "64", "ARGON2_TIME_COST": "1", "ARGON2_PARALLELISM": "1"}
    app = "tests.server.app_with_faulty_route:app"
    server = start_service(app, DATABASE_URL=database_url, SECRET_KEY=KEY, **verbose, **cheap)

    async with httpx.AsyncClient(base_url=server.url + PREFIX, timeout=TIMEOUT) as client:
        tokens, errors = await use_every_secret(client)
        stored = await read_all_values(session)
        await rename_column(session, "password_hash", "elsewhere")
        try:
            errors += [
                await register(client, "c@example.com", fields={"password": PASSWORD}),
                await log_in(client, password=NEW_PASSWORD),
            ]
        finally:
            await rename_column(session, "elsewhere", "password_hash")

    secrets = [MARK, *tokens, *(token.rpartition(".")[2] for token in tokens)]
    assert [error.status_code for error in errors if error.is_server_error] == [500, 500, 500]
    assert "cannot handle email='ann@example.com'" in server.log
    assert "elsewhere" in server.log or "password_hash" in server.log  # the log shows the failed statements
    assert "$argon2id$" not in server.log
    for secret in secrets:
        assert secret not in server.log
        assert [error.text for error in errors if secret in error.text] == []
    assert "ann@example.com" in stored
    token_secrets = [urlsafe_b64decode(token)[16:] for token in tokens if "." not in token]
    for value in stored:
        assert not any(secret in str(value) for secret in secrets)
        assert value not in token_secrets


async def test_repr_contains_no_secret(service: Service, settings: Settings) -> None:
    with_urls = change(settings, database_url=f"postgresql://user:{MARK}@db/app", redis_url=f"redis://:{MARK}@redis")
    objects = [
        with_urls,
        Credentials(email="ann@example.com", password=MARK),
        UserCreate(email="ann@example.com", password=PASSWORD, full_name="Ann"),
        PasswordChange(current_password=PASSWORD, new_password=NEW_PASSWORD),
        RefreshRequest(refresh_token=MARK),
        TokenPair(access_token=MARK, refresh_token=MARK, expires_in=1),
        service.state,
        vars(service.app.state),
    ]

    for shown in objects:
        assert not any(secret in f"{shown} {shown!r}" for secret in (MARK, SECRET_KEY)), type(shown)
