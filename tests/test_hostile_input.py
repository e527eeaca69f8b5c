"""Input that often breaks parsers and databases, in every part of a request, never causes a 5xx."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.pagination import encode_cursor
from app.settings import Settings
from tests.conftest import Service, change, serve
from tests.people import PASSWORD, Person, sign_up, sign_up_superuser

JSON = {"Content-Type": "application/json"}

STRINGS = {
    "empty": "",
    "NUL": "\x00",
    "NUL inside": "a\x00@example.com",
    "NUL, escaped": "%00",
    "lone surrogate": "\ud800",
    "surrogates in wrong order": "\udfff\ud800",
    "noncharacters": "\uffff\ufffe",
    "emoji": "\U0001f9a5" * 8,
    "right-to-left": "\u202e\u2066abcdefgh",
    "control characters": "\x1b[2J\r\n\x7f\x85",
    "combining characters": "a" + "\u0301" * 500,
    "SQL": "'; DROP TABLE users; --",
    "LIKE pattern": "%_\\%",
    "long": "a" * 15_000,
    "long email": "a" * 64 + "@" + "a." * 500 + "com",
    "digits": "9" * 5000,
    "Turkish": "\u0131@\u0130.com",
}


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """The running application with all of its routes and the background task that sends emails."""
    async with serve(change(settings, mail=True)) as service:
        yield service


def requests_with(value: str, ann: Person) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Return requests (method, URL and body) that together have the value in every place that accepts a string."""
    user, query = {"email": "bob@example.com", "password": PASSWORD, "full_name": "Bob"}, quote(value, errors="replace")
    password = {"current_password": PASSWORD, "new_password": "another password"}
    return [
        *(("POST", "/users/", user | {field: value}) for field in user),
        ("POST", "/users/", user | {value: value}),
        ("POST", "/auth/login", {"email": value, "password": PASSWORD}),
        ("POST", "/auth/login", {"email": ann.email, "password": value}),
        ("POST", "/auth/refresh", {"refresh_token": value}),
        ("POST", "/auth/logout", {"refresh_token": value}),
        ("POST", "/auth/password-reset", {"email": value}),
        ("POST", "/auth/password-reset/confirm", {"token": value, "new_password": PASSWORD}),
        ("POST", "/auth/password-reset/confirm", {"token": "A" * 64, "new_password": value}),
        ("POST", "/auth/email-verification", {"email": value}),
        ("POST", "/auth/email-verification/confirm", {"token": value, "password": value}),
        ("POST", "/users/invitations", {"email": value, "full_name": value}),
        ("POST", "/users/invitations", {"email": "bob@example.com", "full_name": value}),
        ("POST", f"/users/{query}/password-reset", None),
        ("DELETE", f"/auth/sessions/{query}", None),
        ("DELETE", f"/users/{query}/sessions/{query}", None),
        ("GET", f"/account/{query}", None),
        ("PATCH", "/users/me", {"email": value}),
        ("PATCH", "/users/me", {"full_name": value}),
        *(("PUT", "/users/me/password", password | {field: value}) for field in ("new_password", "current_password")),
        ("PATCH", f"/users/{ann.id}", {"full_name": value, "is_active": value}),
        ("GET", f"/users/?q={query}", None),
        ("GET", f"/users/?cursor={query}", None),
        ("GET", f"/users/?limit={query}&is_active={query}&{query}={query}", None),
        ("GET", f"/users/{query}", None),
        ("DELETE", f"/users/{query}", None),
        ("GET", f"/{query}", None),
    ]


@pytest.mark.parametrize("value", STRINGS.values(), ids=STRINGS)
async def test_hostile_string_causes_no_server_error(
    client: httpx.AsyncClient, session: AsyncSession, value: str
) -> None:
    root, ann = await sign_up_superuser(client, session), await sign_up(client)

    for method, url, data in requests_with(value, ann):
        content = None if data is None else json.dumps(data)  # httpx's encoder does not escape lone surrogates
        response = await client.request(method, url, content=content, headers=root.auth | JSON)

        assert not response.is_server_error, (method, url[:50], data)
        assert len(response.content) < 5000, (method, url[:50], data)


NUMBERS = ["-1", "0", str(2**63), str(2**64), "9" * 5000, "1.5", "1e400", "-0.0", "NaN", "Infinity", "true"]


async def test_invalid_number_returns_422(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root = await sign_up_superuser(client, session)

    for number in NUMBERS:
        bodies = [f'{{"is_active": {number}}}', f'{{"email": {number}}}', number, f"[{number}]"]
        responses = [await client.patch("/users/me", content=body, headers=root.auth | JSON) for body in bodies]
        urls = [f"/users/{number}", f"/users/?limit={number}"]
        responses += [await client.get(url, headers=root.auth) for url in urls]

        assert [response.status_code for response in responses] == [422] * 6, number


NON_BOOLEANS: list[object] = [0, 1, 0.0, "true", "yes", "on", None, [], {}]


async def test_non_boolean_is_not_coerced(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root = await sign_up_superuser(client, session)

    for value in NON_BOOLEANS:
        response = await client.patch(f"/users/{root.id}", json={"is_superuser": value}, headers=root.auth)

        assert response.status_code == 422, value
        assert [detail["field"] for detail in response.json()["details"]] == ["is_superuser"], value


async def test_cursor_at_limits_of_range_is_accepted(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root = await sign_up_superuser(client, session)

    for user_id in (1, 2**31, 2**63 - 1):
        response = await client.get(f"/users/?cursor={encode_cursor(user_id)}", headers=root.auth)

        assert response.status_code == 200, user_id


@pytest.mark.parametrize("depth", [10, 990, 100_000])
async def test_deeply_nested_json_returns_422(client: httpx.AsyncClient, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"email":', "}")):
        response = await client.post("/users/", content=opening * depth + "1" + closing * depth, headers=JSON)

        assert response.status_code == 422, opening
        assert response.json()["type"] == "validation_error", opening
        assert len(response.content) < 1000, opening


LOGIN = json.dumps({"email": "ann@example.com", "password": PASSWORD})
BODIES = [
    (b"application/json; charset=utf-8", LOGIN.encode(), 200),
    (b"APPLICATION/JSON", LOGIN.encode(), 200),
    (b"application/json; charset=\xff", LOGIN.encode(), 200),
    (b"application/json", LOGIN.encode("utf-16"), 200),
    (b"application/json", b"\xef\xbb\xbf" + LOGIN.encode(), 200),
    (b"application/json", LOGIN.replace("@", "+AEA-").encode(), 422),
    (b"application/json", gzip.compress(LOGIN.encode()), 422),
    (b"application/json, text/plain", LOGIN.encode(), 415),
    (b"application/jsonp", LOGIN.encode(), 415),
    (b"text/json", LOGIN.encode(), 415),
    (b"multipart/form-data", LOGIN.encode(), 415),
    (b"application/x-www-form-urlencoded", b"email=ann%40example.com", 415),
    (b"application/" + b"x" * 10_000, LOGIN.encode(), 415),
    (b"\xff\xfe", LOGIN.encode(), 415),
]


async def test_body_that_is_not_json_is_rejected(client: httpx.AsyncClient) -> None:
    await sign_up(client)

    for media_type, body, status in BODIES:
        response = await client.post("/auth/login", content=body, headers=[(b"Content-Type", media_type)])

        assert response.status_code == status, (media_type, body)


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "QUERY", "PROPFIND", "G\u00c4T", "*", "A" * 1000])
async def test_unknown_method_returns_405(client: httpx.AsyncClient, method: str) -> None:
    for path in ("/users/me", "/health"):
        response = await client.request(method, path)

        assert response.status_code == 405
        assert "GET" in response.headers["allow"]
        assert response.json() == {"error": "Method not allowed", "type": "method_not_allowed"}


PATHS = [
    "//users/me",
    "/users//me",
    "/users/me/",
    "/users/me%2F",
    "/users/me%00",
    "/users/%2E%2E/health",
    "/users/me;a=b",
    "/Users/me",
    "/users/%C2%B9",
    "/users/%C0%AE",
    "/users/%FF",
    "/users/%zz",
    "/%5Cusers%5Cme",
    "/users/0x1",
    "/users/1e0",
]


async def test_hostile_path_returns_404_or_422(client: httpx.AsyncClient, session: AsyncSession) -> None:
    root = await sign_up_superuser(client, session)

    for path in PATHS:
        response = await client.get(httpx.URL("http://test", raw_path=path.encode()), headers=root.auth)

        assert response.status_code in (404, 422), path
        assert response.json()["type"] in ("not_found", "validation_error"), path


HEADERS = ["Authorization", "X-Request-ID", "Host", "Cookie", "Origin", "Content-Type", "Accept", "X-Forwarded-For"]
VALUES = [b"", b" ", b"\xff\xfe", b"Bearer", b"Bearer  a b", b"Bearer \xe9.\xe9.\xe9", b"Bearer " + b"." * 9000]


async def test_hostile_header_returns_401(client: httpx.AsyncClient) -> None:
    for name in HEADERS:
        for value in VALUES:
            response = await client.get("/users/me", headers=[(name.encode(), value)])

            assert response.status_code == 401, (name, value)
