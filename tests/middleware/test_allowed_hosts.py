"""ALLOWED_HOSTS: requests with any other Host header are rejected."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.settings import Settings
from tests.conftest import Service, change, serve


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    allowed = "api.example.com, *.Example.org, [::1]"
    async with serve(change(settings, allowed_hosts=allowed, cors_origins="*")) as service:
        yield service


@pytest.mark.parametrize(
    "host",
    ["api.example.com", "API.EXAMPLE.COM", "api.example.com:8000", "a.example.org", "a.b.example.org:1", "[::1]:80"],
)
async def test_allowed_host_with_any_port_is_accepted(client: httpx.AsyncClient, host: str) -> None:
    response = await client.get("/users/me", headers={"Host": host})

    assert response.status_code == 401


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["example.com"],
        ["api.example.com.evil.example"],
        ["evilexample.org"],
        ["example.org"],
        ["127.0.0.1"],
        ["api.example.com@evil.example"],
        ["evil.example:api.example.com"],
        ["evil.example/.example.org"],
        ["evil.example#.example.org"],
        ["user@a.example.org"],
        ["a.example.org\n"],
        ["api.example.com", "evil.example"],
    ],
)
async def test_unknown_host_returns_400(service: Service, hosts: list[str]) -> None:
    request = service.client.build_request("GET", "/openapi.json", headers={"Origin": "https://app.example"})
    request.headers = httpx.Headers(
        [(name, value) for name, value in request.headers.multi_items() if name != "host"]
        + [("host", host) for host in hosts]
    )

    response = await service.client.send(request)

    assert response.status_code == 400
    assert response.json() == {"error": "Unknown host", "type": "validation_error"}
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_check_by_ip_address_is_accepted(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"Host": "10.1.2.3:8000"})

    assert response.status_code == 200


async def test_any_host_is_accepted_by_default(settings: Settings) -> None:
    async with serve(settings) as service:
        response = await service.client.get("/users/me", headers={"Host": "any.example"})

    assert response.status_code == 401
