"""A HEAD request gets the same response as a GET request, without the body."""

import httpx
import pytest
from structlog.typing import EventDict

from tests.people import sign_up


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/docs", "/openapi.json"])
async def test_head_returns_headers_of_get_without_body(client: httpx.AsyncClient, path: str) -> None:
    get, head = await client.get(path), await client.head(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.keys() == get.headers.keys()
    changing = {"x-request-id", "ratelimit"}
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in get.headers.items() if k not in changing
    }


async def test_head_requires_authentication_like_get(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    anonymous, authenticated = await client.head("/users/me"), await client.head("/users/me", headers=ann.auth)

    assert (anonymous.status_code, anonymous.content) == (401, b"")
    assert (authenticated.status_code, authenticated.content) == (200, b"")


async def test_head_requests_are_logged_like_get(client: httpx.AsyncClient, logs: list[EventDict]) -> None:
    """All of these requests are logged.

    `RefusalLog` drops only lines about requests that exceed a rate limit or are not counted.
    """
    for _ in range(20):
        await client.head("/users/me")

    assert [entry["method"] for entry in logs if entry["event"] == "request"] == ["HEAD"] * 20


@pytest.mark.parametrize(("path", "allow"), [("/auth/login", "POST"), ("/users/me", "DELETE, GET, HEAD, PATCH")])
async def test_allow_header_includes_head_if_path_has_get(client: httpx.AsyncClient, path: str, allow: str) -> None:
    response = await client.put(path)

    assert (response.status_code, response.headers["allow"]) == (405, allow)


async def test_head_is_not_documented(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    assert all("head" not in operations for operations in document["paths"].values())
