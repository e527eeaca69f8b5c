"""The number of round trips to the database and Redis per request. Unlike response times, it does not vary."""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from redis.asyncio.connection import parse_url
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession

from app.settings import Settings
from tests.conftest import change, serve
from tests.people import PASSWORD, Person, log_in, register, sign_up, sign_up_superuser
from tests.tcp_proxy import TCPProxy, tcp_proxy


@pytest.fixture
async def database_proxy(postgresql_url: str) -> AsyncIterator[TCPProxy]:
    """A proxy in front of the database."""
    url = make_url(postgresql_url)
    async with tcp_proxy(url.host or "", url.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def proxied_settings(settings: Settings, database_proxy: TCPProxy, postgresql_url: str) -> Settings:
    """Settings whose database URL points to the proxy."""
    host, port = database_proxy.address.split(":")
    url = make_url(postgresql_url).set(host=host, port=int(port))
    return change(settings, database_url=url.render_as_string(hide_password=False))


Request = Callable[[httpx.AsyncClient, Person], Awaitable[httpx.Response]]

READ_ONE, WRITE_ONE = 1, 3  # a write consists of BEGIN, a statement and COMMIT
REQUESTS: dict[str, tuple[int, Request]] = {
    "health/live": (0, lambda client, _: client.get("/health/live")),
    "health/ready": (READ_ONE, lambda client, _: client.get("/health/ready")),
    "get the current user": (READ_ONE, lambda client, root: client.get("/users/me", headers=root.auth)),
    "get a user": (2 * READ_ONE, lambda client, root: client.get("/users/2", headers=root.auth)),
    "list users": (2 * READ_ONE, lambda client, root: client.get("/users/", headers=root.auth)),
    "register": (WRITE_ONE, lambda client, _: register(client, "cyd@example.com")),
    "update the current user": (
        READ_ONE + WRITE_ONE,
        lambda client, root: client.patch("/users/me", headers=root.auth, json={"full_name": "R"}),
    ),
    # Read the user. Then, in one transaction, lock the user, delete expired tokens, and store the new one: two
    # statements more than in the other writes.
    "log in": (READ_ONE + WRITE_ONE + 2, lambda client, _: log_in(client, "root@example.com")),
    "refresh": (
        WRITE_ONE,
        lambda client, root: client.post("/auth/refresh", json={"refresh_token": root.refresh_token}),
    ),
    "log out": (
        WRITE_ONE,
        lambda client, root: client.post("/auth/logout", json={"refresh_token": root.refresh_token}),
    ),
}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_requests_run_the_minimum_of_statements_in_one_round_trip_each(
    database_proxy: TCPProxy, proxied_settings: Settings
) -> None:
    counts = {}
    async with serve(proxied_settings) as service:
        async with AsyncSession(service.state["engine"]) as session:
            root = await sign_up_superuser(service.client, session)
        ann = await sign_up(service.client)
        # Run each request once before counting, because preparing a statement takes an extra round trip.
        for _, request in REQUESTS.values():
            await request(service.client, ann)
            await request(service.client, root)
        root = await with_new_tokens(service.client, root)  # a request above logged the superuser out
        await service.client.delete("/users/3", headers=root.auth)

        for name, (_, request) in REQUESTS.items():
            root = await with_new_tokens(service.client, root)
            database_proxy.sent.clear()
            response = await request(service.client, root)
            counts[name] = len(database_proxy.sent), sum(map(count_statements, database_proxy.sent))
            assert response.is_success, (name, response.text)

    assert counts == {name: (number, number) for name, (number, _) in REQUESTS.items()}


def count_statements(sent: bytes) -> int:
    """Count the `Query` and `Execute` messages, each of which makes PostgreSQL run a statement.

    Each message consists of a type byte, a length that includes itself, and the contents:
    https://www.postgresql.org/docs/current/protocol-message-formats.html
    """
    number = start = 0
    while start < len(sent):
        number += sent[start : start + 1] in {b"Q", b"E"}
        start += 1 + int.from_bytes(sent[start + 1 : start + 5])
    return number


async def with_new_tokens(client: httpx.AsyncClient, person: Person) -> Person:
    """Log the person in again, and return the person with new tokens."""
    tokens = (await log_in(client, person.email, PASSWORD)).json()
    return Person(person.id, person.email, tokens["access_token"], tokens["refresh_token"])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_requests_use_redis_once_per_rate_limit(redis_url: str, settings: Settings) -> None:
    address = parse_url(redis_url)
    async with (
        tcp_proxy(address["host"], address.get("port", 6379)) as proxy,
        serve(change(settings, redis_url=f"redis://{proxy.address}")) as service,
    ):
        ann = await sign_up(service.client)
        counts = {}
        for path in ("/health/live", "/users/me"):
            proxy.sent.clear()
            await service.client.get(path, headers=ann.auth)
            counts[path] = len(proxy.sent)
        proxy.sent.clear()
        await log_in(service.client)
        counts["/auth/login"] = len(proxy.sent)

    assert counts == {"/health/live": 0, "/users/me": 1, "/auth/login": 2}  # one limit per address, one per account
