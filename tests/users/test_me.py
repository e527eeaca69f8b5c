"""The current user's own account."""

import anyio
import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import utc_now
from tests.people import PASSWORD, TOO_LONG_IN_LOWER_CASE, log_in, register, sign_up, sign_up_superuser


async def test_get_current_user(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await client.get("/users/me", headers=ann.auth)

    assert response.status_code == 200
    assert response.json()["email"] == "ann@example.com"
    assert "password" not in response.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer x.y.z"},
        {"Authorization": "Basic YW5uOnB3"},
    ],
)
async def test_missing_or_malformed_credentials_return_401(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.get("/users/me", headers=headers)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json() == {"error": "Not authenticated", "type": "authentication_error"}


async def test_credentials_are_checked_before_body(client: httpx.AsyncClient) -> None:
    response = await client.patch("/users/me", json={"email": "not an address"})

    assert response.status_code == 401


async def test_update_current_user(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    before = (await client.get("/users/me", headers=ann.auth)).json()
    now = utc_now().isoformat()

    response = await client.patch(
        "/users/me", headers=ann.auth, json={"email": "Ann.Smith@example.com", "full_name": "Ann Smith"}
    )

    assert response.status_code == 200
    after = response.json()
    assert after == (await client.get("/users/me", headers=ann.auth)).json()
    assert after.pop("updated_at") > now > before.pop("updated_at")
    assert after == before | {"email": "ann.smith@example.com", "full_name": "Ann Smith"}


async def test_empty_update_changes_nothing(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    before = (await client.get("/users/me", headers=ann.auth)).json()

    response = await client.patch("/users/me", headers=ann.auth, json={})

    assert response.status_code == 200
    assert response.json() == before


async def test_concurrent_account_deletion_returns_401(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    statuses = []

    async def delete() -> None:
        statuses.append((await client.delete("/users/me", headers=ann.auth)).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(delete)

    assert sorted(statuses) == [204, 401, 401, 401]


@pytest.mark.parametrize(
    "change",
    [
        {"is_superuser": True},
        {"is_active": False},
        {"email": None},
        *({"email": address} for address in TOO_LONG_IN_LOWER_CASE),
        {"full_name": ""},
        {"full_name": "\x9b31m"},
    ],
)
async def test_update_of_protected_or_empty_field_returns_422(
    client: httpx.AsyncClient, change: dict[str, object]
) -> None:
    ann = await sign_up(client)

    response = await client.patch("/users/me", headers=ann.auth, json=change)

    assert response.status_code == 422
    assert [detail["field"] for detail in response.json()["details"]] == list(change)


async def test_update_to_taken_email_returns_400(client: httpx.AsyncClient) -> None:
    await register(client, "bob@example.com")
    ann = await sign_up(client)

    response = await client.patch("/users/me", headers=ann.auth, json={"email": "BOB@example.com"})

    assert response.status_code == 400
    assert response.json() == {"error": "Email already registered", "type": "validation_error"}


async def test_password_change_ends_every_login(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await client.put(
        "/users/me/password",
        headers=ann.auth,
        json={"current_password": PASSWORD, "new_password": "another password"},
    )

    assert (response.status_code, response.content) == (204, b"")
    assert (await client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})).status_code == 401
    assert (await log_in(client)).status_code == 401
    assert (await log_in(client, password="another password")).status_code == 200


async def test_wrong_current_password_returns_400(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await client.put(
        "/users/me/password", headers=ann.auth, json={"current_password": "wrong", "new_password": "another password"}
    )

    assert response.status_code == 400
    assert response.json() == {"error": "Incorrect current password", "type": "validation_error"}
    assert (await client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})).status_code == 200


async def test_concurrent_password_changes_apply_one(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    statuses: list[int] = []

    async def change_password(new: str) -> None:
        body = {"current_password": PASSWORD, "new_password": new}
        statuses.append((await client.put("/users/me/password", headers=ann.auth, json=body)).status_code)

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(change_password, f"new password {number}")

    assert statuses.count(204) == 1
    assert set(statuses) == {204, 401}  # the first change ends all logins


async def test_account_deletion_revokes_tokens(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await client.delete("/users/me", headers=ann.auth)

    assert (response.status_code, response.content) == (204, b"")
    assert (await client.get("/users/me", headers=ann.auth)).status_code == 401
    assert (await client.post("/auth/refresh", json={"refresh_token": ann.refresh_token})).status_code == 401
    assert (await log_in(client)).status_code == 401


async def test_token_of_deleted_user_is_invalid_for_next_user(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)
    await client.delete("/users/me", headers=ann.auth)

    bob = await sign_up(client, "bob@example.com")

    assert bob.id != ann.id
    assert (await client.get("/users/me", headers=ann.auth)).status_code == 401


async def test_last_superuser_deleting_own_account_returns_409(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    root = await sign_up_superuser(client, session)

    response = await client.delete("/users/me", headers=root.auth)

    assert response.status_code == 409
    assert response.json()["type"] == "conflict"
    assert (await client.get("/users/me", headers=root.auth)).status_code == 200
