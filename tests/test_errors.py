"""Errors from every layer have the same JSON format."""

import json

import httpx
import pytest
import structlog
from fastapi import HTTPException

from app import PREFIX
from tests.conftest import Service
from tests.people import register, sign_up

JSON = {"Content-Type": "application/json"}


async def test_unknown_path_returns_404(client: httpx.AsyncClient) -> None:
    response = await client.get("/nowhere")

    assert response.status_code == 404
    assert response.json() == {"error": "Not found", "type": "not_found"}


async def test_trailing_slash_is_significant(client: httpx.AsyncClient) -> None:
    assert (await client.get("/users")).status_code == 404
    assert (await client.get("/health/live/")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/users/", "GET, HEAD, POST"),
        ("POST", "/users/1", "DELETE, GET, HEAD, PATCH"),
        ("POST", "/users/me", "DELETE, GET, HEAD, PATCH"),
        ("GET", "/auth/login", "POST"),
        ("TRACE", "/health/live", "GET, HEAD"),
        ("POST", "/docs/swagger-ui.css", "GET, HEAD"),
    ],
)
async def test_wrong_method_returns_405_with_the_allowed_methods(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await client.request(method, path)

    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json() == {"error": "Method not allowed", "type": "method_not_allowed"}


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
async def test_body_with_another_content_type_returns_415(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}

    response = await client.post("/auth/login", content=b'{"email": "ann@example.com"}', headers=headers)

    assert response.status_code == 415
    assert response.json()["type"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "body", [b"{", b"hunter2", b'"\xff"', b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000, b"NaN hunter2"]
)
async def test_malformed_json_returns_422(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/auth/login", content=body, headers=JSON)

    assert response.status_code == 422
    assert response.json() == {
        "error": "Validation failed",
        "type": "validation_error",
        "details": [{"field": "body", "message": "Not valid JSON"}],
    }


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"1", b'"text"', b"{}"])
async def test_unexpected_json_type_returns_422(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/auth/login", content=body, headers=JSON)

    assert response.status_code == 422
    fields = [detail["field"] for detail in response.json()["details"]]
    assert fields == (["email", "password"] if body == b"{}" else ["body"])


@pytest.fixture
def failing_routes(service_with_bug: Service) -> httpx.AsyncClient:
    """A client for an application with additional routes that raise exceptions."""
    app = service_with_bug.app

    @app.get(PREFIX + "/crash")
    async def crash() -> None:
        raise RuntimeError("boom")

    @app.get(PREFIX + "/other/{service}")
    async def call_other_service(service: str) -> None:
        raise TimeoutError if service == "slow" else ConnectionRefusedError

    @app.get(PREFIX + "/raise/{status}")
    async def raise_(status: int) -> None:
        raise HTTPException(status, "Short and stout", {"X-Tea": "Earl Grey"})

    return service_with_bug.client


async def test_unexpected_exception_returns_500(failing_routes: httpx.AsyncClient) -> None:
    response = await failing_routes.get("/crash", headers={"X-Request-ID": "my-request"})

    assert response.status_code == 500
    assert response.json() == {"error": "Internal server error", "type": "internal_error"}
    assert response.headers["x-request-id"] == "my-request"
    assert {"ratelimit", "ratelimit-policy"} <= response.headers.keys()  # a failed request counts towards rate limits


async def test_unexpected_exception_is_raised_in_a_test(service: Service) -> None:
    @service.app.get(PREFIX + "/crash")
    async def crash() -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        await service.client.get("/crash")


@pytest.mark.parametrize("other", ["slow", "unreachable"])
async def test_outage_of_another_service_is_not_a_database_outage(
    failing_routes: httpx.AsyncClient, logs: list[structlog.typing.EventDict], other: str
) -> None:
    response = await failing_routes.get(f"/other/{other}")

    assert response.status_code == 500
    assert response.json() == {"error": "Internal server error", "type": "internal_error"}
    assert [entry["event"] for entry in logs] == ["request"]


@pytest.mark.parametrize(
    ("status", "type_", "header"),
    [
        (400, "validation_error", "x-tea"),
        (401, "authentication_error", "www-authenticate"),
        (404, "not_found", "x-tea"),
        (418, "http_418", "x-tea"),
        (422, "validation_error", "x-tea"),
        (499, "http_499", "x-tea"),
        (503, "service_unavailable", "retry-after"),
    ],
)
async def test_http_exception_has_the_format_of_other_errors(
    failing_routes: httpx.AsyncClient, status: int, type_: str, header: str
) -> None:
    response = await failing_routes.get(f"/raise/{status}")

    assert response.status_code == status
    assert response.headers["x-tea"] == "Earl Grey"
    assert header in response.headers
    assert response.json() == {"error": "Short and stout", "type": type_}


@pytest.mark.parametrize("status", [204, 304])
async def test_http_exception_with_a_bodyless_status_sends_no_body(
    failing_routes: httpx.AsyncClient, status: int
) -> None:
    response = await failing_routes.get(f"/raise/{status}")

    assert (response.status_code, response.content) == (status, b"")
    assert response.headers["x-tea"] == "Earl Grey"


async def test_details_name_the_invalid_field(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    response = await register(client, fields={"full_name": {"first": ["Ann"]}})

    assert [detail["field"] for detail in response.json()["details"]] == ["full_name"]
    assert (await client.get("/users/1x", headers=ann.auth)).json()["details"][0]["field"] == "user_id"


async def test_content_type_is_json_without_a_charset(client: httpx.AsyncClient) -> None:
    response = await client.get("/nowhere")

    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.content) == response.json()
