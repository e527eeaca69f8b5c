"""What happens to what was answered with 2xx when workers, containers and PostgreSQL are killed: it stays."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import pytest
from processes import PATIENCE, until

from tests.container.conftest import Database
from tests.container.engine import Container, cli, running
from tests.container.service import options
from tests.people import PASSWORD

CLIENTS = 8
# What each client waits between two requests, so that the machine is busy but not at its limit.
PAUSE = 0.03
NO_LIMIT = "1000000/minute"
FAST = {"ARGON2_MEMORY_KIB": "64", "ARGON2_TIME_COST": "1", "ARGON2_PARALLELISM": "1"}
KILL_WORKERS = """
import contextlib, os, pathlib
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # health checks come and go
        if stat.read_text().rpartition(")")[2].split()[1] == "1":
            os.kill(int(stat.parent.name), 9)
"""


@pytest.fixture
def database(network: str) -> Iterator[Database]:
    """A database on a disk, on a server that is as careful as it comes."""
    settings = ["--env=POSTGRES_PASSWORD=password", "--health-cmd=pg_isready --host=127.0.0.1", "--health-interval=1s"]
    with running("postgres:18-alpine", f"--network={network}", *settings) as container:
        yield Database(container.is_healthy())


@pytest.fixture
def service(image: str, network: str, database: Database) -> Iterator[Container]:
    url = database.url.replace(database.server.ip, database.server.name)
    limits = {"RATE_LIMIT_LOGIN": NO_LIMIT, "RATE_LIMIT_REGISTER": NO_LIMIT}
    settings = options(DATABASE_URL=url, DATABASE_MIGRATE="true", **limits, **FAST)
    with running(image, f"--network={network}", *settings) as container:
        yield container.is_healthy()


@dataclass
class Person:
    """Somebody, and what the service has promised them. Of what is unsure, nobody knows whether it was done."""

    email: str
    name: str = "none yet"
    unsure_names: list[str] = field(default_factory=list)
    access_token: str = ""
    refresh_token: str = ""
    spent_tokens: list[str] = field(default_factory=list)


class BrokenPromise(Exception):
    """An answer that should not be."""


class Clients:
    """People who register, change their names and refresh their tokens without end, and write down each promise."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.people: list[Person] = []
        self.promises = 0
        self.unsure = 0
        self.wrong: list[str] = []

    async def run(self, stop: threading.Event) -> None:
        """Lives until it is told to stop."""
        async with httpx.AsyncClient(timeout=PATIENCE) as self.http:
            await asyncio.gather(*(self.live(number, stop) for number in range(CLIENTS)))

    async def live(self, number: int, stop: threading.Event) -> None:
        """Is one person after the other."""
        for generation in itertools.count():
            if stop.is_set():
                return
            person = Person(f"person-{number}-{generation}@example.com")
            with suppress(BrokenPromise):
                await self.register(person)
                self.people.append(person)
                for times in range(6):
                    if stop.is_set():
                        return
                    await self.rename(person, f"name {times}")
                    await self.refresh(person)
                await self.refresh_twice_at_once(person)

    async def ask(self, method: str, path: str, person: Person, expected: set[int], **fields: str) -> httpx.Response:
        """Asks; where there is no answer, or one that promises nothing, gives a 503."""
        await asyncio.sleep(PAUSE)
        headers = {"Authorization": f"Bearer {person.access_token}"} if person.access_token else {}
        try:
            answer = await self.http.request(method, self.url + path, json=fields, headers=headers)
        except httpx.TransportError:
            answer = httpx.Response(503)
        if answer.status_code not in expected | {503}:
            self.wrong.append(f"{method} {path} of {person.email}: {answer.status_code} {answer.text}")
            raise BrokenPromise
        self.promises += answer.is_success
        self.unsure += answer.status_code == 503
        return answer

    async def post(
        self, path: str, person: Person, status: int, *, in_doubt: int | None = None, **fields: str
    ) -> httpx.Response:
        """Posts until there is an answer, which may be another after an attempt that had none but was successful."""
        expected = {status}
        async with asyncio.timeout(PATIENCE):
            while (answer := await self.ask("POST", path, person, expected, **fields)).status_code == 503:
                expected = {status, in_doubt or status}
        return answer

    async def register(self, person: Person) -> None:
        """Registers."""
        await self.post(
            "/users/", person, 201, in_doubt=400, email=person.email, password=PASSWORD, full_name=person.name
        )

    async def log_in(self, person: Person) -> None:
        """Logs in."""
        tokens = (await self.post("/auth/login", person, 200, email=person.email, password=PASSWORD)).json()
        person.access_token, person.refresh_token = tokens["access_token"], tokens["refresh_token"]

    async def rename(self, person: Person, name: str) -> None:
        """Changes the name, once."""
        if not person.access_token:
            await self.log_in(person)
        answer = await self.ask("PATCH", "/users/me", person, {200}, full_name=name)
        if answer.is_success:
            person.name, person.unsure_names = name, []
        else:
            person.unsure_names.append(name)

    async def refresh(self, person: Person) -> None:
        """Exchanges the refresh token. Where an attempt without an answer has spent it, its family has ended."""
        answer = await self.post("/auth/refresh", person, 200, in_doubt=401, refresh_token=person.refresh_token)
        if answer.is_success:
            person.spent_tokens.append(person.refresh_token)
            person.refresh_token = answer.json()["refresh_token"]
        else:
            await self.log_in(person)
            person.spent_tokens.clear()  # of a family that has ended, nothing could work

    async def refresh_twice_at_once(self, person: Person) -> None:
        """Exchanges one token two times at the same time, as a thief and the owner would."""
        token = person.refresh_token
        answers = await asyncio.gather(
            *(self.ask("POST", "/auth/refresh", person, {200, 401}, refresh_token=token) for _ in range(2))
        )
        if all(answer.is_success for answer in answers):
            self.wrong.append(f"a token of {person.email} worked twice")
        person.refresh_token = ""
        if any(answer.is_success for answer in answers):
            person.spent_tokens.append(token)


@contextmanager
def living(clients: Clients) -> Iterator[None]:
    """Lets the clients live while the block is executed."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        life = executor.submit(asyncio.run, clients.run(stop))
        try:
            yield
        finally:
            stop.set()
        life.result()


def test_what_was_acknowledged_is_there_after_ten_kills(service: Container, database: Database) -> None:
    def kill_workers() -> None:
        service.execute("python", "-c", KILL_WORKERS)

    def kill_container() -> None:
        cli("kill", service.name)
        clients.url = f"http://{service.start().is_healthy().ip}:8000"

    def kill_database() -> None:
        cli("kill", database.server.name)
        database.server.start().is_healthy()

    clients = Clients(f"http://{service.ip}:8000")
    kills: list[Callable[[], None]] = [kill_workers, kill_container, kill_database]
    with living(clients):
        for kill in itertools.islice(itertools.cycle(kills), 10):
            promises = clients.promises
            until(lambda promises=promises: clients.promises > promises + 100 or clients.wrong, "promises are made")  # type: ignore[misc]
            assert clients.wrong == []
            kill()
    print(f"-- {clients.promises} promises to {len(clients.people)} people, {clients.unsure} unsure")  # noqa: T201
    assert clients.wrong == []
    rows = [line.split("|") for line in database.query("SELECT email, full_name FROM users").splitlines()]
    names = dict(rows)
    assert len(names) == len(rows)
    assert [
        person for person in clients.people if names.get(person.email) not in {person.name, *person.unsure_names}
    ] == []
    asyncio.run(each_token_works_once(clients))
    assert clients.wrong == []


async def each_token_works_once(clients: Clients) -> None:
    """Tries everybody's live token, and then a spent one."""

    async def try_tokens(person: Person) -> None:
        with suppress(BrokenPromise):  # it stands in clients.wrong
            if token := person.refresh_token:
                await clients.post("/auth/refresh", person, 200, in_doubt=401, refresh_token=token)
            for token in person.spent_tokens[-1:]:
                await clients.post("/auth/refresh", person, 401, refresh_token=token)

    async with httpx.AsyncClient(timeout=PATIENCE) as clients.http:
        await asyncio.gather(*map(try_tokens, clients.people))
