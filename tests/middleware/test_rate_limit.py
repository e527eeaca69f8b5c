"""A client's address may make so many requests in a time, and is told in each response how many are left."""

import re
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.main import LIMITS
from app.settings import Settings
from tests.conftest import Service, change, serve
from tests.people import log_in, register

LIMITED = {"error": "Too many requests, try again later", "type": "rate_limited"}
PROXY = "127.0.0.1"


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with serve(change(settings, rate_limit="3/minute")) as service:
        yield service


def with_state(service: Service) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await service.app({**scope, "state": {**service.state}}, receive, send)

    return app


def client_at(host: str, app: ASGIApp) -> httpx.AsyncClient:
    """Somebody who connects from an address."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(host, 1234)), base_url="http://test")


async def test_what_is_left_is_said_until_nothing_is(client: httpx.AsyncClient) -> None:
    responses = [await client.get(path) for path in ("/users/me", "/nowhere", "/auth/login", "/users/me")]

    assert [response.status_code for response in responses] == [401, 404, 405, 429]
    for left, response in zip((2, 1, 0, 0), responses, strict=True):
        assert response.headers["ratelimit-policy"] == '"default";q=3;w=60'
        assert re.fullmatch(rf'"default";r={left};t=([1-9]|[1-5]\d|60)', response.headers["ratelimit"])
    assert ["retry-after" in response.headers for response in responses] == [False, False, False, True]
    assert responses[-1].json() == LIMITED
    assert responses[-1].headers["ratelimit"].endswith(f";t={responses[-1].headers['retry-after']}")
    assert responses[-1].headers["x-request-id"]


@pytest.mark.parametrize(
    "path", ["/health", "/health/live", "/health/ready", "/docs", "/docs/swagger-ui.css", "/redoc"]
)
async def test_probes_and_documentation_are_not_counted(client: httpx.AsyncClient, path: str) -> None:
    responses = [await client.get(path) for _ in range(4)]

    for response in responses:
        assert response.status_code == 200
        assert "ratelimit" not in response.headers
    assert (await client.get("/healthy")).headers["ratelimit"]


async def test_nothing_of_the_body_is_read_before_the_refusal(client: httpx.AsyncClient) -> None:
    was_read = []

    async def body() -> AsyncIterator[bytes]:
        was_read.append(True)
        yield b"{}"

    responses = [await client.patch("/users/me", content=body()) for _ in range(4)]

    assert [response.status_code for response in responses] == [401, 401, 401, 429]
    assert len(was_read) == 3


async def test_logins_from_one_address_have_a_tighter_limit(settings: Settings) -> None:
    async with serve(change(settings, rate_limit_login="2/minute")) as service:
        responses = [await log_in(service.client, email) for email in ("a@x.org", "b@x.org", "c@x.org")]
        other = await service.client.get("/users/me")

    assert [response.status_code for response in responses] == [401, 401, 429]
    assert responses[0].headers["ratelimit-policy"] == responses[2].headers["ratelimit-policy"] == '"login";q=2;w=60'
    assert other.headers["ratelimit-policy"].startswith('"default"')


async def test_a_path_that_is_taken_for_another_has_its_limit(settings: Settings) -> None:
    """The router takes a line feed at the end of a path for nothing."""
    async with serve(change(settings, rate_limit_login="1/minute", rate_limit_register="1/minute")) as service:
        responses = [await service.client.post(path) for path in ("/auth/login", "/auth/login%0A")]
        responses += [await service.client.post(path) for path in ("/users/", "/users/%0A")]

    assert [response.status_code for response in responses] == [422, 429, 422, 429]


async def test_registrations_from_one_address_have_a_tighter_limit(settings: Settings) -> None:
    async with serve(change(settings, rate_limit_register="1/minute")) as service:
        responses = [await register(service.client, email) for email in ("a@x.org", "b@x.org")]

    assert [response.status_code for response in responses] == [201, 429]
    assert responses[0].headers["ratelimit-policy"] == '"register";q=1;w=60'


@pytest.mark.parametrize("known", [True, False])
async def test_one_account_may_be_tried_only_so_often_from_wherever(settings: Settings, known: bool) -> None:
    async with serve(change(settings, rate_limit_login="2/minute")) as service:
        if known:
            await register(service.client)
        responses = []
        for number, email in enumerate(["ann@example.com", "Ann@Example.com", "ANN@example.com"]):
            async with client_at(f"10.0.0.{number}", with_state(service)) as client:
                responses.append(await log_in(client, email, "a wrong password"))
        async with client_at("10.0.0.9", with_state(service)) as client:
            other_account = await log_in(client, "bob@example.com")

    assert [response.status_code for response in responses] == [401, 401, 429]
    assert responses[2].json() == LIMITED
    assert responses[2].headers["ratelimit-policy"] == '"account";q=2;w=60'
    assert responses[2].headers["ratelimit"].startswith('"account";r=0;t=')
    assert responses[2].headers["retry-after"]
    assert other_account.status_code == 401


@pytest.mark.parametrize(
    ("host", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:0db8::1:0:0:0:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("no:address", "no:address", True),
        ("no:address", "no:other", False),
    ],
)
async def test_who_is_one_client(service: Service, host: str, other: str, same: bool) -> None:
    app = with_state(service)
    async with client_at(host, app) as one, client_at(other, app) as two:
        responses = [await one.get("/users/me"), await two.get("/users/me")]

    assert [response.headers["ratelimit"].split(";")[1] for response in responses] == ["r=2", "r=1" if same else "r=2"]


async def test_a_server_on_a_unix_socket_knows_no_address(service: Service) -> None:
    async def without_client(scope: Scope, receive: Receive, send: Send) -> None:
        await with_state(service)({**scope, "client": None}, receive, send)

    async with client_at("", without_client) as client:
        response = await client.get("/users/me")

    assert response.headers["ratelimit"].startswith('"default";r=2;')


@pytest.mark.parametrize("host", [PROXY, "192.0.2.66"])
async def test_nobody_gets_a_count_of_their_own_by_lying_about_their_address(service: Service, host: str) -> None:
    """Uvicorn believes the proxy for the last address that is none of a proxy, and others not at all."""
    behind_proxy = ProxyHeadersMiddleware(with_state(service), trusted_hosts=[PROXY])  # type: ignore[arg-type]  # one ASGI, two typings
    async with client_at(host, behind_proxy) as client:  # type: ignore[arg-type]
        for lie in ("198.51.100.1", "198.51.100.2"):
            response = await client.get("/users/me", headers={"X-Forwarded-For": f"{lie}, 203.0.113.7"})

    assert response.headers["ratelimit"].split(";")[1] == "r=1"


async def test_clients_behind_a_trusted_proxy_are_told_apart(service: Service) -> None:
    behind_proxy = ProxyHeadersMiddleware(with_state(service), trusted_hosts=[PROXY])  # type: ignore[arg-type]
    async with client_at(PROXY, behind_proxy) as client:  # type: ignore[arg-type]
        for address in ("198.51.100.1", "198.51.100.2"):
            response = await client.get("/users/me", headers={"X-Forwarded-For": address})

    assert response.headers["ratelimit"].split(";")[1] == "r=2"


async def test_redis_counts_where_it_is_configured(settings: Settings, redis_url: str) -> None:
    with_redis = change(settings, rate_limit="3/minute", redis_url=redis_url, secret_key=uuid4().hex)
    async with serve(with_redis) as one, serve(with_redis) as two:
        responses = [await service.client.get("/users/me") for service in (one, two)]

    assert [response.headers["ratelimit"].split(";")[1] for response in responses] == ["r=2", "r=1"]


async def test_redis_unavailable_requests_are_counted_in_the_process(settings: Settings) -> None:
    async with serve(change(settings, rate_limit="1/minute", redis_url="redis://127.0.0.1:1")) as service:
        responses = [await service.client.get("/users/me") for _ in range(2)]

    assert [response.status_code for response in responses] == [401, 429]


async def test_a_preflight_is_not_counted_and_a_page_may_read_a_refusal(settings: Settings) -> None:
    origin = "https://app.example"
    async with serve(change(settings, cors_origins=[origin], rate_limit="1/minute")) as service:
        asking = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        preflights = [await service.client.options("/users/me", headers=asking) for _ in range(2)]
        responses = [await service.client.get("/users/me", headers={"Origin": origin}) for _ in range(2)]

    assert [response.status_code for response in (*preflights, *responses)] == [200, 200, 401, 429]
    assert responses[1].headers["access-control-allow-origin"] == origin
    exposed = responses[1].headers["access-control-expose-headers"].split(", ")
    assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= set(exposed)


async def test_what_has_a_limit_of_its_own_exists(service: Service) -> None:
    operations = {(method, path) for path, methods in service.app.openapi()["paths"].items() for method in methods}

    assert {(method.lower(), path) for method, path in LIMITS} <= operations
