"""Behind a proxy that serves the application below a path, and takes that off."""

import re
from collections.abc import AsyncIterator

import pytest

from app.settings import Settings
from tests.conftest import Service, serve
from tests.people import register, sign_up_superuser


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with serve(settings, root_path="/api") as service:
        yield service


async def test_headers_lead_to_where_the_proxy_serves(service: Service) -> None:
    async with service.state["write_sessions"]() as session:
        root = await sign_up_superuser(service.client, session)

    registered = await register(service.client)
    page = await service.client.get("/users/", params={"limit": 1}, headers=root.auth)

    assert registered.headers["location"] == f"/api/users/{registered.json()['id']}"
    assert page.headers["link"] == f'</api/users/?limit=1&cursor={page.json()["next_cursor"]}>; rel="next"'


async def test_the_documentation_knows_where_it_is(service: Service) -> None:
    document = await service.client.get("/openapi.json")

    assert document.json()["servers"] == [{"url": "/api"}]
    for path in ("/docs", "/redoc"):
        page = await service.client.get(path)
        assert "/api/openapi.json" in page.text
        assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert assets
        for asset in assets:
            assert asset.startswith(f"/api{path}/")
            assert (await service.client.get(asset.removeprefix("/api"))).status_code == 200


async def test_rules_about_paths_hold_all_the_same(service: Service, settings: Settings) -> None:
    policy = settings.rate_limit_login.partition("/")[0]

    page = await service.client.get("/docs")
    wrong_methods = [await service.client.patch(path) for path in ("/auth/login", "/docs/swagger-ui.css")]
    login = await service.client.post("/auth/login", json={"email": "ann@example.com", "password": "wrong"})

    assert "script-src 'self' 'sha256-" in page.headers["content-security-policy"]
    assert [response.headers["allow"] for response in wrong_methods] == ["POST", "GET, HEAD"]
    assert login.headers["ratelimit-policy"] == f'"login";q={policy};w=60'
