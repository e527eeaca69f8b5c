"""Behind a proxy that strips a path prefix, links contain the prefix, but path rules match paths without it."""

import re
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app import PREFIX
from app.settings import Settings
from tests.conftest import Service, serve
from tests.people import register, sign_up_superuser


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with serve(settings, root_path="/api") as service:
        yield service


async def test_link_headers_contain_the_prefix(service: Service, session: AsyncSession) -> None:
    root = await sign_up_superuser(service.client, session)

    registered = await register(service.client)
    page = await service.client.get("/users/", params={"limit": 1}, headers=root.auth)

    assert registered.headers["location"] == f"/api{PREFIX}/users/{registered.json()['id']}"
    assert page.headers["link"] == f'</api{PREFIX}/users/?limit=1&cursor={page.json()["next_cursor"]}>; rel="next"'


async def test_documentation_contains_the_prefix(service: Service) -> None:
    document = await service.client.get("/openapi.json")

    assert document.json()["servers"] == [{"url": "/api"}]
    for path in ("/docs", "/redoc"):
        page = await service.client.get(path)
        assert f"/api{PREFIX}/openapi.json" in page.text
        assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert assets
        for asset in assets:
            assert asset.startswith(f"/api{PREFIX}{path}/")
            assert (await service.client.get(asset.removeprefix(f"/api{PREFIX}"))).status_code == 200


async def test_rules_about_paths_ignore_the_prefix(service: Service, settings: Settings) -> None:
    quota = settings.rate_limit_login.partition("/")[0]

    page = await service.client.get("/docs")
    wrong_methods = [await service.client.patch(path) for path in ("/auth/login", "/docs/swagger-ui.css")]
    login = await service.client.post("/auth/login", json={"email": "ann@example.com", "password": "wrong"})

    assert "script-src 'self' 'sha256-" in page.headers["content-security-policy"]
    assert [response.headers["allow"] for response in wrong_methods] == ["POST", "GET, HEAD"]
    assert login.headers["ratelimit-policy"] == f'"login";q={quota};w=60'
