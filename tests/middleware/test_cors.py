"""Browsers may call the API from the origins that are named, and from no other."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.settings import Settings
from tests.conftest import Service, change, serve

PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "PATCH"}


async def test_by_default_there_is_none(client: httpx.AsyncClient) -> None:
    preflight = await client.options("/users/me", headers=PREFLIGHT)
    request = await client.get("/health", headers=PREFLIGHT)

    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in {*preflight.headers, *request.headers}


@pytest.fixture
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """The service for the pages of https://app.example."""
    async with serve(change(settings, cors_origins=["https://app.example"], max_body_size=1000)) as service:
        yield service


async def test_an_origin_that_is_named_may(open_service: Service) -> None:
    preflight = await open_service.client.options("/users/me", headers=PREFLIGHT)
    request = await open_service.client.get("/users/me", headers=PREFLIGHT)

    assert preflight.status_code == 200
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    assert request.headers["access-control-allow-origin"] == "https://app.example"
    assert "X-Request-ID" in request.headers["access-control-expose-headers"]


async def test_another_origin_may_not(open_service: Service) -> None:
    headers = PREFLIGHT | {"Origin": "https://evil.example"}

    preflight = await open_service.client.options("/users/me", headers=headers)
    request = await open_service.client.get("/users/me", headers=headers)

    assert preflight.status_code == 400
    assert preflight.json() == {"error": "Not allowed from this origin", "type": "validation_error"}
    assert "access-control-allow-origin" not in {*preflight.headers, *request.headers}


@pytest.mark.parametrize(("names", "status"), [("authorization, content-type, x-request-id", 200), ("x-other", 400)])
async def test_a_page_may_send_the_headers_that_the_api_takes(open_service: Service, names: str, status: int) -> None:
    headers = PREFLIGHT | {"Access-Control-Request-Headers": names}

    preflight = await open_service.client.options("/users/me", headers=headers)

    assert preflight.status_code == status


async def test_a_page_may_read_errors_too(open_service: Service) -> None:
    @open_service.app.get("/crash")
    async def crash() -> None:
        raise RuntimeError("boom")

    crashed = await open_service.client.get("/crash", headers=PREFLIGHT)
    too_large = await open_service.client.post("/users/", content=b" " * 1001, headers=PREFLIGHT)

    assert (crashed.status_code, too_large.status_code) == (500, 413)
    for response in (crashed, too_large):
        assert response.headers["access-control-allow-origin"] == "https://app.example"
