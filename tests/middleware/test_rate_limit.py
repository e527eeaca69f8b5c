"""Rate limits per client IP address and per account, and the headers that report them."""

import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter, WebSocket
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app import PREFIX
from app.limiter import rate_limit
from app.main import create_app
from app.settings import Settings
from tests.conftest import Service, change, client_at, serve, with_state
from tests.people import log_in, register, sign_up

RATE_LIMITED = {"error": "Too many requests, try again later", "type": "rate_limited"}
PROXY = "127.0.0.1"


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with serve(change(settings, rate_limit="3/minute")) as service:
        yield service


def client_behind_proxy(host: str, service: Service) -> httpx.AsyncClient:
    """Return a client that connects from the IP address `host`. X-Forwarded-For is trusted only if `host` is PROXY."""
    app: Any = ProxyHeadersMiddleware(with_state(service), trusted_hosts=[PROXY])  # type: ignore[arg-type]  # Uvicorn has its own types for ASGI
    return client_at(host, app)


def remaining(response: httpx.Response) -> int:
    """Return the remaining quota from the RateLimit header."""
    return int(response.headers["ratelimit"].split(";")[1].removeprefix("r="))


async def test_remaining_quota_is_in_headers_until_429(client: httpx.AsyncClient) -> None:
    responses = [await client.get(path) for path in ("/users/me", "/nowhere", "/auth/login", "/users/me")]

    assert [response.status_code for response in responses] == [401, 404, 405, 429]
    for left, response in zip((2, 1, 0, 0), responses, strict=True):
        assert response.headers["ratelimit-policy"] == '"default";q=3;w=60'
        assert re.fullmatch(rf'"default";r={left};t=([1-9]|[1-5]\d|60)', response.headers["ratelimit"])
    assert ["retry-after" in response.headers for response in responses] == [False, False, False, True]
    assert responses[-1].json() == RATE_LIMITED
    assert responses[-1].headers["ratelimit"].endswith(f";t={responses[-1].headers['retry-after']}")
    assert responses[-1].headers["x-request-id"]


@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui.css", "/redoc/redoc.standalone.js", "/openapi.json"])
async def test_requests_for_docs_are_limited(client: httpx.AsyncClient, path: str) -> None:
    """The responses are large. Without a limit, clients that do not read them could exhaust the server's memory."""
    responses = [await client.get(path) for _ in range(4)]

    assert [response.status_code for response in responses] == [200, 200, 200, 429]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_checks_are_exempt(client: httpx.AsyncClient, path: str) -> None:
    responses = [await client.get(path) for _ in range(4)]

    for response in responses:
        assert response.status_code == 200
        assert "ratelimit" not in response.headers
    assert (await client.get("/healthy")).headers["ratelimit"]


async def test_429_is_sent_before_body_is_read(client: httpx.AsyncClient) -> None:
    reads = []

    async def body() -> AsyncIterator[bytes]:
        reads.append(True)
        yield b"{}"

    responses = [await client.put("/users/me/password", content=body()) for _ in range(4)]

    assert [response.status_code for response in responses] == [401, 401, 401, 429]
    assert len(reads) == 3


async def test_logins_per_address_have_own_limit(settings: Settings) -> None:
    async with serve(change(settings, rate_limit_login="2/minute")) as service:
        responses = [await log_in(service.client, email) for email in ("a@x.org", "b@x.org", "c@x.org")]
        other = await service.client.get("/users/me")

    assert [response.status_code for response in responses] == [401, 401, 429]
    assert responses[0].headers["ratelimit-policy"] == responses[2].headers["ratelimit-policy"] == '"login";q=2;w=60'
    assert other.headers["ratelimit-policy"].startswith('"default"')


async def test_path_with_trailing_line_feed_has_same_limit(settings: Settings) -> None:
    """Starlette's routes also match a path that ends with a line feed."""
    async with serve(change(settings, rate_limit_login="1/minute", rate_limit_register="1/minute")) as service:
        responses = [await service.client.post(path) for path in ("/auth/login", "/auth/login%0A")]
        responses += [await service.client.post(path) for path in ("/users/", "/users/%0A")]

    assert [response.status_code for response in responses] == [422, 429, 422, 429]


async def test_registrations_per_address_have_own_limit(settings: Settings) -> None:
    async with serve(change(settings, rate_limit_register="1/minute")) as service:
        responses = [await register(service.client, email) for email in ("a@x.org", "b@x.org")]

    assert [response.status_code for response in responses] == [201, 429]
    assert responses[0].headers["ratelimit-policy"] == '"register";q=1;w=60'


@pytest.mark.parametrize("exists", [True, False], ids=["existing account", "unknown account"])
async def test_logins_to_one_account_from_many_addresses_are_limited(settings: Settings, exists: bool) -> None:
    async with serve(change(settings, rate_limit_login="2/minute")) as service:
        if exists:
            await register(service.client)
        responses = []
        for number, email in enumerate(["ann@example.com", "Ann@Example.com", "ANN@example.com"]):
            async with client_at(f"10.0.0.{number}", with_state(service)) as client:
                responses.append(await log_in(client, email, "a wrong password"))
        async with client_at("10.0.0.9", with_state(service)) as client:
            other_account = await log_in(client, "bob@example.com")

    assert [response.status_code for response in responses] == [401, 401, 429]
    assert responses[2].json() == RATE_LIMITED
    assert responses[2].headers["ratelimit-policy"] == '"account";q=2;w=60'
    assert responses[2].headers["ratelimit"].startswith('"account";r=0;t=')
    assert responses[2].headers["retry-after"]
    assert other_account.status_code == 401


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
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
async def test_client_is_identified_by_ipv4_address_or_ipv6_network(
    service: Service, first: str, second: str, is_same: bool
) -> None:
    app = with_state(service)
    async with client_at(first, app) as one, client_at(second, app) as two:
        responses = [await one.get("/users/me"), await two.get("/users/me")]

    assert [remaining(response) for response in responses] == [2, 1 if is_same else 2]


async def test_clients_without_address_share_a_limit(service: Service) -> None:
    async def without_client(scope: Scope, receive: Receive, send: Send) -> None:
        await with_state(service)({**scope, "client": None}, receive, send)

    async with client_at("", without_client) as client:
        response = await client.get("/users/me")

    assert response.headers["ratelimit"].startswith('"default";r=2;')


@pytest.mark.parametrize("host", [PROXY, "192.0.2.66"])
async def test_forged_x_forwarded_for_does_not_evade_limit(service: Service, host: str) -> None:
    """Uvicorn uses the header only if a trusted proxy sent it.

    The client's address is then the last address in the header that does not belong to a trusted proxy.
    """
    async with client_behind_proxy(host, service) as client:
        for forged in ("198.51.100.1", "198.51.100.2"):
            response = await client.get("/users/me", headers={"X-Forwarded-For": f"{forged}, 203.0.113.7"})

    assert remaining(response) == 1


async def test_clients_behind_trusted_proxy_have_separate_limits(service: Service) -> None:
    async with client_behind_proxy(PROXY, service) as client:
        for address in ("198.51.100.1", "198.51.100.2"):
            response = await client.get("/users/me", headers={"X-Forwarded-For": address})

    assert remaining(response) == 2


async def test_redis_counts_for_all_processes(settings: Settings, redis_url: str) -> None:
    with_redis = change(settings, rate_limit="3/minute", redis_url=redis_url, secret_key=uuid4().hex)
    async with serve(with_redis) as one, serve(with_redis) as two:
        responses = [await service.client.get("/users/me") for service in (one, two)]

    assert [remaining(response) for response in responses] == [2, 1]


async def test_redis_unavailable_counts_in_process(settings: Settings) -> None:
    limits = {"rate_limit": "1/minute", "rate_limit_login": "1/minute"}
    async with serve(change(settings, **limits, redis_url="redis://127.0.0.1:1")) as service:
        responses = [await service.client.get("/users/me") for _ in range(2)]
        responses.append(await log_in(service.client))
        async with client_at("10.0.0.1", with_state(service)) as other_address:
            responses.append(await log_in(other_address))

    assert [response.status_code for response in responses] == [401, 429, 401, 429]
    policies = [response.headers["ratelimit-policy"].partition(";")[0] for response in responses]
    assert policies == ['"default"', '"default"', '"login"', '"account"']


async def test_preflights_are_exempt_and_429_has_cors_headers(settings: Settings) -> None:
    origin = "https://app.example"
    async with serve(change(settings, cors_origins=[origin], rate_limit="1/minute")) as service:
        preflight = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        preflights = [await service.client.options("/users/me", headers=preflight) for _ in range(2)]
        responses = [await service.client.get("/users/me", headers={"Origin": origin}) for _ in range(2)]

    assert [response.status_code for response in (*preflights, *responses)] == [200, 200, 401, 429]
    assert responses[1].headers["access-control-allow-origin"] == origin
    exposed = responses[1].headers["access-control-expose-headers"].split(", ")
    assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= set(exposed)


async def test_email_changes_share_the_limit_of_registrations(settings: Settings) -> None:
    """Registrations and email changes both reveal whether an email address is taken."""
    async with serve(change(settings, rate_limit_register="3/minute")) as service:
        ann = await sign_up(service.client)
        changes = [
            await service.client.patch("/users/me", headers=ann.auth, json={"email": f"ann{number}@example.com"})
            for number in range(3)
        ]

    assert [response.status_code for response in changes] == [200, 200, 429]
    assert changes[2].headers["ratelimit-policy"] == '"register";q=3;w=60'


async def test_password_changes_share_the_limit_of_logins_to_the_account(settings: Settings) -> None:
    """Someone with a stolen access token must not be able to guess the current password through repeated attempts."""
    async with serve(change(settings, rate_limit_login="3/minute")) as service:
        ann = await sign_up(service.client)
        body = {"current_password": "wrong", "new_password": "another password"}
        attempts = [await service.client.put("/users/me/password", headers=ann.auth, json=body) for _ in range(3)]
        async with client_at("10.0.0.1", with_state(service)) as elsewhere:
            login = await log_in(elsewhere)

    assert [response.status_code for response in attempts] == [400, 400, 429]
    assert attempts[2].headers["ratelimit-policy"] == '"account";q=3;w=60'
    assert login.status_code == 429


async def test_limit_of_the_account_remains_after_a_change_of_the_address(settings: Settings) -> None:
    async with serve(change(settings, rate_limit_login="3/minute", mail=False)) as service:
        ann = await sign_up(service.client)
        body = {"current_password": "wrong", "new_password": "another password"}
        attempts = []
        for number in range(3):
            address = {"email": f"ann{number}@example.com"}
            assert (await service.client.patch("/users/me", headers=ann.auth, json=address)).status_code == 200
            attempts.append(await service.client.put("/users/me/password", headers=ann.auth, json=body))

    assert [response.status_code for response in attempts] == [400, 400, 429]


async def test_route_with_a_parameter_can_have_its_own_limit(settings: Settings) -> None:
    async with serve(change(settings, rate_limit_register="2/minute")) as service:

        @service.app.post(PREFIX + "/limited-in-a-test/{number}")
        @rate_limit("register")
        async def limited(number: int) -> int:
            return number

        responses = [await service.client.post(f"/limited-in-a-test/{number}") for number in range(3)]

    assert [response.status_code for response in responses] == [200, 200, 429]
    assert responses[2].headers["ratelimit-policy"] == '"register";q=2;w=60'


async def test_route_without_its_own_limit_does_not_use_that_of_a_later_route(service: Service) -> None:
    @service.app.post(PREFIX + "/limited-in-a-test/all")
    async def every() -> None: ...

    @service.app.post(PREFIX + "/limited-in-a-test/{number}")
    @rate_limit("register")
    async def limited(number: int) -> None: ...

    response = await service.client.post("/limited-in-a-test/all")

    assert response.headers["ratelimit-policy"].startswith('"default";')


async def test_mount_and_websocket_do_not_hide_the_limit_of_a_route_with_the_same_path(service: Service) -> None:
    @service.app.websocket(PREFIX + "/limited-in-a-test")
    async def chat(websocket: WebSocket) -> None: ...

    service.app.mount(PREFIX + "/limited-in-a-test", Starlette())  # matches only the paths below

    @service.app.get(PREFIX + "/limited-in-a-test")
    @rate_limit("register")
    async def limited() -> None: ...

    response = await service.client.get("/limited-in-a-test")

    assert response.headers["ratelimit-policy"].startswith('"register";')


def test_rate_limit_without_a_setting_is_an_error_at_startup(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()

    @router.post("/limited-in-a-test")
    @rate_limit("without_setting")
    async def limited() -> None: ...

    monkeypatch.setattr("app.api.ROUTERS", [router])

    with pytest.raises(LookupError, match="RATE_LIMIT_WITHOUT_SETTING"):
        create_app(settings)


async def test_count_of_a_limit_without_a_setting_names_the_setting(service: Service) -> None:
    with pytest.raises(LookupError, match="RATE_LIMIT_WITHOUT_SETTING"):
        await service.state["limiter"].hit("without_setting", "ann")
