"""CORS_ORIGINS: only pages from these origins may call the API."""

from collections.abc import AsyncIterator

import pytest

from app import PREFIX
from app.settings import Settings
from tests.conftest import Service, change, serve

CORS = {"cors_origins": ["https://app.example"], "max_body_size": 1000}
PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "PATCH"}


async def test_cors_is_disabled_by_default(settings: Settings) -> None:
    async with serve(settings) as service:
        preflight = await service.client.options("/users/me", headers=PREFLIGHT)
        response = await service.client.get("/health", headers=PREFLIGHT)

    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in {*preflight.headers, *response.headers}


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """The running application, which allows CORS requests from `https://app.example`."""
    async with serve(change(settings, **CORS)) as service:
        yield service


async def test_allowed_origin_receives_cors_headers(service: Service) -> None:
    preflight = await service.client.options("/users/me", headers=PREFLIGHT)
    response = await service.client.get("/users/me", headers=PREFLIGHT)

    assert preflight.status_code == 200
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert "X-Request-ID" in response.headers["access-control-expose-headers"]


async def test_other_origin_is_rejected(service: Service) -> None:
    headers = PREFLIGHT | {"Origin": "https://evil.example"}

    preflight = await service.client.options("/users/me", headers=headers)
    response = await service.client.get("/users/me", headers=headers)

    assert preflight.status_code == 400
    assert preflight.json() == {"error": "Not allowed from this origin", "type": "validation_error"}
    assert "access-control-allow-origin" not in {*preflight.headers, *response.headers}


@pytest.mark.parametrize(
    ("requested", "status"), [("authorization, content-type, x-request-id", 200), ("x-other", 400)]
)
async def test_preflight_allows_only_headers_of_the_api(service: Service, requested: str, status: int) -> None:
    headers = PREFLIGHT | {"Access-Control-Request-Headers": requested}

    preflight = await service.client.options("/users/me", headers=headers)

    assert preflight.status_code == status


async def test_error_responses_have_cors_headers(settings: Settings) -> None:
    async with serve(change(settings, **CORS), raises=False) as service:

        @service.app.get(PREFIX + "/crash")
        async def crash() -> None:
            raise RuntimeError("boom")

        crashed = await service.client.get("/crash", headers=PREFLIGHT)
        too_large = await service.client.post("/users/", content=b" " * 1001, headers=PREFLIGHT)

    assert (crashed.status_code, too_large.status_code) == (500, 413)
    for response in (crashed, too_large):
        assert response.headers["access-control-allow-origin"] == "https://app.example"
