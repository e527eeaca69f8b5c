"""Anyone may register, once per address."""

import anyio
import httpx
import pytest

from tests.people import PASSWORD, log_in, register


async def test_a_new_user_is_answered_without_a_password(client: httpx.AsyncClient) -> None:
    response = await register(client, "Ann@Example.com", fields={"full_name": "  Ann Smith "})

    assert response.status_code == 201
    user = response.json()
    assert response.headers["location"] == f"/users/{user['id']}"
    created_at = user.pop("created_at")
    assert created_at.endswith("Z")
    assert created_at == user.pop("updated_at")
    assert user == {
        "id": user["id"],
        "email": "ann@example.com",
        "full_name": "Ann Smith",
        "is_active": True,
        "is_superuser": False,
    }


async def test_a_2xx_means_stored(client: httpx.AsyncClient) -> None:
    await register(client)

    assert (await log_in(client)).status_code == 200


@pytest.mark.parametrize("again", ["ann@example.com", "ANN@example.COM"])
async def test_an_address_is_unique_regardless_of_case(client: httpx.AsyncClient, again: str) -> None:
    await register(client, "Ann@example.com")

    response = await register(client, again)

    assert response.status_code == 400
    assert response.json() == {"error": "Email already registered", "type": "validation_error"}


async def test_of_two_who_race_for_an_address_one_wins(client: httpx.AsyncClient) -> None:
    statuses: list[int] = []

    async def race(email: str) -> None:
        statuses.append((await register(client, email)).status_code)

    async with anyio.create_task_group() as group:
        for email in ["ann@example.com", "Ann@example.com"] * 4:
            group.start_soon(race, email)

    assert sorted(statuses) == [201] + [400] * 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "no address"),
        ("email", "ann@"),
        ("email", f"{'a' * 250}@example.com"),
        ("email", "ann\x00@example.com"),
        ("email", None),
        ("email", 7),
        ("password", "1234567"),
        ("password", "x" * 129),
        ("full_name", ""),
        ("full_name", "   "),
        ("full_name", "x" * 101),
        ("full_name", "Ann\x00"),
        ("full_name", "\ud800"),
        ("is_superuser", True),
        ("is_active", False),
        ("id", 1),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(client: httpx.AsyncClient, field: str, value: object) -> None:
    response = await register(client, fields={field: value})

    assert response.status_code == 422
    body = response.json()
    assert body["error"] == "Validation failed"
    assert body["type"] == "validation_error"
    assert [detail["field"] for detail in body["details"]] == [field]


async def test_an_error_does_not_repeat_what_was_sent(client: httpx.AsyncClient) -> None:
    secret = "hunter2"

    response = await register(
        client, f"{secret} @{secret}", fields={"password": secret, f"a {secret}": secret, secret: secret}
    )

    assert response.status_code == 422
    details = response.json()["details"]
    # A name that the client made up is repeated only where it is nothing but a name.
    assert [detail["field"] for detail in details] == ["email", "password", "body", secret]
    assert not any(secret in detail["message"] for detail in details)


@pytest.mark.parametrize("password", ["x" * 8, "ß" * 128, "   spaces   ", "nul\x00nul\x00"])
async def test_a_password_is_taken_as_it_is(client: httpx.AsyncClient, password: str) -> None:
    await register(client, fields={"password": password})

    assert (await log_in(client, password=password)).status_code == 200
    assert (await log_in(client, password=password.strip()[:-1] or PASSWORD)).status_code == 401
