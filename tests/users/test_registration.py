"""Registration: anyone can register, but only once per email address."""

import anyio
import httpx
import pytest

from app import PREFIX
from tests.people import PASSWORD, TOO_LONG_IN_LOWER_CASE, log_in, register


async def test_registration_returns_user_without_password(client: httpx.AsyncClient) -> None:
    response = await register(client, "Ann@Example.com", fields={"full_name": "  Ann Smith "})

    assert response.status_code == 201
    user = response.json()
    assert response.headers["location"] == f"{PREFIX}/users/{user['id']}"
    created_at = user.pop("created_at")
    assert created_at.endswith("Z")
    assert created_at == user.pop("updated_at")
    assert user == {
        "id": user["id"],
        "email": "ann@example.com",
        "full_name": "Ann Smith",
        "is_active": True,
        "is_superuser": False,
        "email_verified": False,
        "pending_email": None,
    }


async def test_user_is_committed_before_response(client: httpx.AsyncClient) -> None:
    await register(client)

    assert (await log_in(client)).status_code == 200


@pytest.mark.parametrize("letter", ["a", "é", "İ"])
async def test_email_of_maximum_length_is_accepted(client: httpx.AsyncClient, letter: str) -> None:
    size = len(letter.lower().encode())
    local = letter * (64 // size) + "x" * (64 % size)

    response = await register(client, f"{local}@{'x' * 60}.{'y' * 60}.{'z' * 59}.example")

    assert response.status_code == 201
    assert len(response.json()["email"].encode()) == 254


@pytest.mark.parametrize("second_email", ["ann@example.com", "ANN@example.COM"])
async def test_email_is_unique_regardless_of_case(client: httpx.AsyncClient, second_email: str) -> None:
    await register(client, "Ann@example.com")

    response = await register(client, second_email)

    assert response.status_code == 400
    assert response.json() == {"error": "Email already registered", "type": "validation_error"}


async def test_concurrent_registrations_of_one_email_create_one_user(client: httpx.AsyncClient) -> None:
    statuses: list[int] = []

    async def register_once(email: str) -> None:
        statuses.append((await register(client, email)).status_code)

    async with anyio.create_task_group() as group:
        for email in ["ann@example.com", "Ann@example.com"] * 4:
            group.start_soon(register_once, email)

    assert sorted(statuses) == [201] + [400] * 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "not an address"),
        ("email", "ann@"),
        ("email", f"{'a' * 250}@example.com"),
        *(("email", address) for address in TOO_LONG_IN_LOWER_CASE),
        ("email", f"{'a' * 65}@example.com"),
        ("email", f"{'é' * 33}@example.com"),
        ("email", "ann\x00@example.com"),
        ("email", "ann@example.com\r\nBcc: bob@example.com"),
        ("email", "ann@example.com>"),
        ("email", None),
        ("email", 7),
        ("password", "1234567"),
        ("password", "x" * 129),
        ("password", "\ud800" * 8),
        ("full_name", ""),
        ("full_name", "   "),
        ("full_name", "x" * 101),
        ("full_name", "Ann\x00"),
        ("full_name", "Ann\r\nBcc: bob@example.com"),
        ("full_name", "\ud800"),
        ("is_superuser", True),
        ("is_active", False),
        ("id", 1),
    ],
)
async def test_invalid_field_is_named_in_422(client: httpx.AsyncClient, field: str, value: object) -> None:
    response = await register(client, fields={field: value})

    assert response.status_code == 422
    body = response.json()
    assert body["error"] == "Validation failed"
    assert body["type"] == "validation_error"
    assert [detail["field"] for detail in body["details"]] == [field]


async def test_validation_error_does_not_echo_input(client: httpx.AsyncClient) -> None:
    secret = "hunter2"

    response = await register(
        client, f"{secret} @{secret}", fields={"password": secret, f"a {secret}": secret, secret: secret}
    )

    assert response.status_code == 422
    details = response.json()["details"]
    # A response includes the name of an unknown field only if the name is an identifier.
    assert [detail["field"] for detail in details] == ["email", "password", "body", secret]
    assert not any(secret in detail["message"] for detail in details)


@pytest.mark.parametrize("password", ["x" * 8, "ß" * 128, "   spaces   "])
async def test_password_is_stored_unchanged(client: httpx.AsyncClient, password: str) -> None:
    await register(client, fields={"password": password})

    assert (await log_in(client, password=password)).status_code == 200
    assert (await log_in(client, password=password.strip()[:-1] or PASSWORD)).status_code == 401
