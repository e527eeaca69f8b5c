"""A service that has been told its names answers to no other."""

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
async def test_its_own_names_are_answered_with_any_port(client: httpx.AsyncClient, host: str) -> None:
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
        ["api.example.com", "evil.example"],
    ],
)
async def test_others_are_refused(service: Service, hosts: list[str]) -> None:
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
async def test_probes_may_ask_for_an_address(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"Host": "10.1.2.3:8000"})

    assert response.status_code == 200


async def test_by_default_any_host_will_do(settings: Settings) -> None:
    async with serve(settings) as service:
        response = await service.client.get("/users/me", headers={"Host": "whatever.example"})

    assert response.status_code == 401
