"""Browsers may call the API from the origins that are named, and from no other."""

import httpx

from app.settings import HTTPSettings, Settings
from tests.conftest import serve

PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "PATCH"}


async def test_by_default_there_is_none(client: httpx.AsyncClient) -> None:
    preflight = await client.options("/users/me", headers=PREFLIGHT)
    request = await client.get("/health", headers=PREFLIGHT)

    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in {*preflight.headers, *request.headers}


async def test_an_origin_that_is_named_may(settings: Settings) -> None:
    named = settings.model_copy(update={"http": HTTPSettings(cors_origins=["https://app.example"])})

    async with serve(named) as service:
        preflight = await service.client.options("/users/me", headers=PREFLIGHT)
        request = await service.client.get("/users/me", headers=PREFLIGHT)
        other = await service.client.get("/users/me", headers=PREFLIGHT | {"Origin": "https://evil.example"})

    assert preflight.status_code == 200
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    assert request.headers["access-control-allow-origin"] == "https://app.example"
    assert "X-Request-ID" in request.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in other.headers
