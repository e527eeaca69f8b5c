"""How much each request asks of the database and Redis: what makes a service slow before any clock shows it."""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from redis.asyncio.connection import parse_url
from sqlalchemy import make_url

from app.settings import Settings
from tests.conftest import serve
from tests.gate import Gate, gate_before
from tests.people import PASSWORD, Person, log_in, register, sign_up, sign_up_superuser


@pytest.fixture
async def database(postgresql_url: str, settings: Settings) -> AsyncIterator[tuple[Gate, Settings]]:
    """A gate before the database, and settings that lead through it."""
    url = make_url(postgresql_url)
    async with gate_before(url.host or "", url.port or 5432) as gate:
        host, port = gate.address.split(":")
        through = url.set(host=host, port=int(port)).render_as_string(hide_password=False)
        yield gate, change(settings, database_url=through)


Request = Callable[[httpx.AsyncClient, Person], Awaitable[httpx.Response]]

READ_ONE, WRITE_ONE = 1, 3  # a write has BEGIN and COMMIT about it
REQUESTS: dict[str, tuple[int, Request]] = {
    "health/live": (0, lambda client, _: client.get("/health/live")),
    "health/ready": (READ_ONE, lambda client, _: client.get("/health/ready")),
    "read yourself": (READ_ONE, lambda client, root: client.get("/users/me", headers=root.auth)),
    "read a user": (2 * READ_ONE, lambda client, root: client.get("/users/2", headers=root.auth)),
    "list users": (2 * READ_ONE, lambda client, root: client.get("/users/", headers=root.auth)),
    "register": (WRITE_ONE, lambda client, _: register(client, "cyd@example.com")),
    "change yourself": (
        READ_ONE + WRITE_ONE,
        lambda client, root: client.patch("/users/me", headers=root.auth, json={"full_name": "R"}),
    ),
    # The user is read, then locked; the token is stored, dead ones are deleted.
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
async def test_each_request_runs_as_many_statements_as_it_must_each_in_one_round_trip(
    database: tuple[Gate, Settings],
) -> None:
    gate, settings = database
    counted = {}
    async with serve(settings) as service:
        async with AsyncSession(service.state["engine"]) as session:
            root = await sign_up_superuser(service.client, session)
        ann = await sign_up(service.client)
        # The first time each statement is prepared, a round trip more.
        for _, request in REQUESTS.values():
            await request(service.client, ann)
            await request(service.client, root)
        await service.client.delete("/users/3", headers=root.auth)

        for name, (_, request) in REQUESTS.items():
            root = await tokens_of(service.client, root)
            gate.sent.clear()
            response = await request(service.client, root)
            counted[name] = len(gate.sent), sum(map(statements_in, gate.sent))
            assert response.is_success, (name, response.text)

    assert counted == {name: (number, number) for name, (number, _) in REQUESTS.items()}


def statements_in(sent: bytes) -> int:
    """How many statements PostgreSQL is told to run, by `Query` and `Execute` messages.

    https://www.postgresql.org/docs/current/protocol-message-formats.html: a letter, the length of the rest, the rest.
    """
    number = start = 0
    while start < len(sent):
        number += sent[start : start + 1] in {b"Q", b"E"}
        start += 1 + int.from_bytes(sent[start + 1 : start + 5])
    return number


async def tokens_of(client: httpx.AsyncClient, person: Person) -> Person:
    """The same person, newly logged in."""
    tokens = (await log_in(client, person.email, PASSWORD)).json()
    return Person(person.id, person.email, tokens["access_token"], tokens["refresh_token"])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_each_request_asks_redis_once_for_each_limit(redis_url: str, settings: Settings) -> None:
    address = parse_url(redis_url)
    async with gate_before(address["host"], address.get("port", 6379)) as gate:
        async with serve(change(settings, redis_url=f"redis://{gate.address}")) as service:
            ann = await sign_up(service.client)
            counted = {}
            for path in ("/health/live", "/users/me"):
                gate.sent.clear()
                await service.client.get(path, headers=ann.auth)
                counted[path] = len(gate.sent)
            gate.sent.clear()
            await log_in(service.client)
            counted["/auth/login"] = len(gate.sent)

    assert counted == {"/health/live": 0, "/users/me": 1, "/auth/login": 2}  # by address and by account
