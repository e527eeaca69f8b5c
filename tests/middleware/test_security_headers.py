"""Security headers on every response."""

import re
from base64 import b64encode
from hashlib import sha256

import httpx
import pytest
from fastapi import Response

from app import PREFIX
from app.settings import Settings
from tests.conftest import Service, change, serve
from tests.people import log_in, sign_up

STRICT_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


async def test_responses_have_strict_headers(client: httpx.AsyncClient) -> None:
    ann = await sign_up(client)

    responses = [await log_in(client), await client.get("/users/me", headers=ann.auth)]

    for response in responses:
        assert response.status_code == 200
        assert response.headers.items() >= STRICT_HEADERS.items()


async def test_errors_of_every_layer_have_strict_headers(settings: Settings) -> None:
    async with serve(change(settings, max_body_size=10), raises=False) as service:

        @service.app.get(PREFIX + "/crash")
        async def crash() -> None:
            raise RuntimeError("boom")

        requests = {"/nowhere": 404, "/auth/login": 405, "/users/me": 401, "/crash": 500}
        responses = {path: await service.client.get(path) for path in requests}
        too_large = await service.client.post("/auth/login", content=b" " * 11)

    assert {path: response.status_code for path, response in responses.items()} == requests
    assert too_large.status_code == 413
    for response in (*responses.values(), too_large):
        assert response.headers.items() >= STRICT_HEADERS.items()
        assert "server" not in response.headers


async def test_route_can_set_cache_control(service: Service) -> None:
    @service.app.get(PREFIX + "/news-in-a-test")
    async def news(response: Response) -> None:
        response.headers["Cache-Control"] = "max-age=60"

    response = await service.client.get("/news-in-a-test")

    assert response.headers.get_list("cache-control") == ["max-age=60"]


@pytest.mark.parametrize("environment", ["production", "test"])
@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize("path", ["/health", "/docs"])
async def test_hsts_is_sent_only_in_production_over_https(
    settings: Settings, environment: str, scheme: str, path: str
) -> None:
    async with serve(settings.model_copy(update={"environment": environment})) as service:
        response = await service.client.get(f"{scheme}://test{path}")

    hsts = response.headers.get("strict-transport-security")
    assert hsts == ("max-age=63072000" if (environment, scheme) == ("production", "https") else None)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_docs_policy_allows_only_own_scripts(client: httpx.AsyncClient, path: str) -> None:
    page = await client.get(path)

    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    inline = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert policy["script-src"].split() == [
        "'self'",
        *(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in inline),
    ]
    assert len(inline) == (path == "/docs")
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/docs/swagger-ui.css"])
async def test_docs_are_cacheable(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert response.status_code == 200
    assert "cache-control" not in response.headers


async def test_docs_policy_applies_under_root_path(settings: Settings) -> None:
    async with serve(settings, root_path="/api") as service:
        page = await service.client.get("/docs")

    assert "script-src 'self' 'sha256-" in page.headers["content-security-policy"]
