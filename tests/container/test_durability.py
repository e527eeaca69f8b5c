"""Acknowledged writes survive when workers, containers and PostgreSQL are killed."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import pytest
from processes import TIMEOUT, until

from tests.container.conftest import POSTGRESQL, POSTGRESQL_OPTIONS, Database
from tests.container.engine import Container, run_container, run_docker
from tests.container.service import api, run_service
from tests.people import PASSWORD

CLIENTS = 8
# Seconds that a client sleeps before each request, to keep the machine busy but not overloaded.
PAUSE = 0.03
SETTINGS = {
    "DATABASE_MIGRATE": "true",
    # Without an overlap, a refresh token is accepted at most once, so the test can check that used tokens are rejected.
    "REFRESH_OVERLAP_SECONDS": "0",
    # Make password hashes cheap, because the clients log in often
    "ARGON2_MEMORY_KIB": "64",
    "ARGON2_TIME_COST": "1",
    "ARGON2_PARALLELISM": "1",
}
# A script that runs in the container. It kills the children of process 1, which are the workers.
KILL_WORKERS = """
import contextlib, os, pathlib
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # processes of health checks end at any time
        if stat.read_text().rpartition(")")[2].split()[1] == "1":
            os.kill(int(stat.parent.name), 9)
"""


@pytest.fixture
def database(network: str) -> Iterator[Database]:
    """A database on disk with PostgreSQL's default settings, so that every commit is synced to the disk."""
    with run_container(POSTGRESQL, f"--network={network}", *POSTGRESQL_OPTIONS) as container:
        yield Database(container.wait_until_healthy())


@pytest.fixture
def service(image: str, network: str, database: Database) -> Iterator[Container]:
    with run_service(image, f"--network={network}", DATABASE_URL=database.url_by_name, **SETTINGS) as container:
        yield container


@dataclass
class Account:
    """A user, and the user's acknowledged writes. Unacknowledged writes may or may not have been stored."""

    email: str
    name: str = "first name"
    unacknowledged_names: list[str] = field(default_factory=list)
    access_token: str = ""
    refresh_token: str = ""
    used_tokens: list[str] = field(default_factory=list)


class UnexpectedResponse(Exception):
    """A response that contradicts an acknowledged write."""


class Clients:
    """Clients that register users, change names, refresh tokens, and record which writes were acknowledged."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.accounts: list[Account] = []
        self.acknowledged = 0
        self.unacknowledged = 0
        self.unexpected: list[str] = []

    async def run(self, stop: threading.Event) -> None:
        """Run all clients concurrently until `stop` is set."""
        async with httpx.AsyncClient(timeout=TIMEOUT) as self.http:
            await asyncio.gather(*(self.run_client(number, stop) for number in range(CLIENTS)))

    async def run_client(self, number: int, stop: threading.Event) -> None:
        """Register one account after another. Change each account's name and refresh its tokens several times."""
        for generation in itertools.count():
            if stop.is_set():
                return
            account = Account(f"user-{number}-{generation}@example.com")
            with suppress(UnexpectedResponse):
                await self.register(account)
                self.accounts.append(account)
                for times in range(6):
                    if stop.is_set():
                        return
                    await self.rename(account, f"name {times}")
                    await self.refresh(account)
                await self.refresh_twice_at_once(account)

    async def request(
        self, method: str, path: str, account: Account, expected: set[int], **fields: str
    ) -> httpx.Response:
        """Send a request. If the connection fails, return a 503.

        After a failed connection or a 503 response, it is unknown whether the request took effect.

        Raises:
            UnexpectedResponse: The status is neither in `expected` nor 503.
        """
        await asyncio.sleep(PAUSE)
        headers = {"Authorization": f"Bearer {account.access_token}"} if account.access_token else {}
        try:
            response = await self.http.request(method, self.url + path, json=fields, headers=headers)
        except httpx.TransportError:
            response = httpx.Response(503)
        if response.status_code not in expected | {503}:
            self.unexpected.append(f"{method} {path} of {account.email}: {response.status_code} {response.text}")
            raise UnexpectedResponse
        self.acknowledged += response.is_success
        self.unacknowledged += response.status_code == 503
        return response

    async def post(
        self, path: str, account: Account, status: int, *, repeated: int | None = None, **fields: str
    ) -> httpx.Response:
        """Send a POST request, and retry it as long as the status is 503.

        Args:
            path: The path.
            account: The account that sends the request.
            status: The expected status.
            repeated: Another status to accept on a retry, because an earlier attempt may have succeeded without being
                acknowledged.
            fields: The fields of the request body.
        """
        expected = {status}
        async with asyncio.timeout(TIMEOUT):
            while (response := await self.request("POST", path, account, expected, **fields)).status_code == 503:
                expected = {status, repeated or status}
        return response

    async def register(self, account: Account) -> None:
        """Register the account."""
        fields = {"email": account.email, "password": PASSWORD, "full_name": account.name}
        await self.post("/users/", account, 201, repeated=400, **fields)

    async def log_in(self, account: Account) -> None:
        """Log in to get new tokens."""
        tokens = (await self.post("/auth/login", account, 200, email=account.email, password=PASSWORD)).json()
        account.access_token, account.refresh_token = tokens["access_token"], tokens["refresh_token"]

    async def rename(self, account: Account, name: str) -> None:
        """Change the name once, without a retry."""
        if not account.access_token:
            await self.log_in(account)
        response = await self.request("PATCH", "/users/me", account, {200}, full_name=name)
        if response.is_success:
            account.name, account.unacknowledged_names = name, []
        else:
            account.unacknowledged_names.append(name)

    async def refresh(self, account: Account) -> None:
        """Exchange the refresh token.

        If an earlier attempt used the token but was not acknowledged, retrying revokes the login.
        """
        response = await self.post("/auth/refresh", account, 200, repeated=401, refresh_token=account.refresh_token)
        if response.is_success:
            account.used_tokens.append(account.refresh_token)
            account.refresh_token = response.json()["refresh_token"]
        else:
            await self.log_in(account)
            account.used_tokens.clear()  # the used tokens belong to the revoked login

    async def refresh_twice_at_once(self, account: Account) -> None:
        """Exchange the same refresh token in two concurrent requests, as its owner and a thief might do."""
        token = account.refresh_token
        responses = await asyncio.gather(
            *(self.request("POST", "/auth/refresh", account, {200, 401}, refresh_token=token) for _ in range(2))
        )
        if all(response.is_success for response in responses):
            self.unexpected.append(f"a refresh token of {account.email} was accepted twice")
        account.refresh_token = ""
        if any(response.is_success for response in responses):
            account.used_tokens.append(token)


@contextmanager
def run_clients(clients: Clients) -> Iterator[None]:
    """Run the clients in a thread until the `with` block ends."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(asyncio.run, clients.run(stop))
        try:
            yield
        finally:
            stop.set()
        running.result()


def test_ten_kills_lose_no_acknowledged_write(service: Container, database: Database) -> None:
    def kill_workers() -> None:
        service.execute("python", "-c", KILL_WORKERS)

    def kill_container() -> None:
        run_docker("kill", service.name)
        clients.url = api(service.start().wait_until_healthy())

    def kill_database() -> None:
        run_docker("kill", database.server.name)
        database.server.start().wait_until_healthy()

    clients = Clients(api(service))
    kills: list[Callable[[], None]] = [kill_workers, kill_container, kill_database]
    with run_clients(clients):
        for kill in itertools.islice(itertools.cycle(kills), 10):
            enough = clients.acknowledged + 100
            until(lambda enough=enough: clients.acknowledged > enough or clients.unexpected, "writes succeed")  # type: ignore[misc]
            assert clients.unexpected == []
            kill()
    counts = f"{clients.acknowledged} acknowledged, {clients.unacknowledged} not"
    print(f"-- {len(clients.accounts)} accounts, {counts}")  # noqa: T201  shown by `pytest -rP`
    assert clients.unexpected == []
    rows = [line.split("|") for line in database.query("SELECT email, full_name FROM users").splitlines()]
    names = dict(rows)
    assert len(names) == len(rows)
    assert [
        account
        for account in clients.accounts
        if names.get(account.email) not in {account.name, *account.unacknowledged_names}
    ] == []
    asyncio.run(refresh_all_tokens(clients))
    assert clients.unexpected == []


async def refresh_all_tokens(clients: Clients) -> None:
    """Check that the current refresh token of each account is accepted, and that a used token is rejected."""

    async def refresh_tokens(account: Account) -> None:
        with suppress(UnexpectedResponse):  # `clients.unexpected` records these
            if token := account.refresh_token:
                await clients.post("/auth/refresh", account, 200, repeated=401, refresh_token=token)
            for token in account.used_tokens[-1:]:
                await clients.post("/auth/refresh", account, 401, refresh_token=token)

    async with httpx.AsyncClient(timeout=TIMEOUT) as clients.http:
        await asyncio.gather(*map(refresh_tokens, clients.accounts))
