"""What the tests share: a database of their own of each kind, the application on it, and clients."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from uuid import uuid4

import asyncpg
import httpx
import pytest
import structlog
from fastapi import FastAPI
from pydantic import SecretStr
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Receive, Scope, Send

from app.database import Base
from app.docs.openapi import build_openapi
from app.factory import create_app
from app.lifespan import lifespan
from app.migrations import migrate
from app.settings import (
    AuthSettings,
    DatabaseSettings,
    HTTPSettings,
    LogSettings,
    RedisSettings,
    ServerSettings,
    Settings,
)
from app.state import State
from tests.conformance import conforms_to
from tests.container.engine import cli, running

ROOT = Path(__file__).parent.parent
REQUIRE_ALL = "REQUIRE_ALL_TESTS"


# What can run here, and what cannot ------------------------------------------------------------------------------


@cache
def docker_is_there() -> bool:
    """Whether a Docker engine answers."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode == 0


def cannot_run(reason: str) -> NoReturn:
    """Skips a test that lacks something here, or fails it where everything must run."""
    if os.environ.get(REQUIRE_ALL):
        pytest.fail(f"{REQUIRE_ALL} is set, and this cannot run: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_configure() -> None:
    # What ends a run with `kill` ends it as Ctrl-C does, and what the run has started with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/container/" in item.path.as_posix():
            item.add_marker(pytest.mark.usefixtures("docker"))


@pytest.fixture(scope="session")
def docker() -> None:
    if not docker_is_there():
        cannot_run("container tests: no Docker engine answers")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        skipped[reason] = skipped.get(reason, 0) + 1
    if skipped:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in sorted(skipped.items()))
        terminalreporter.write_line(f"Not run here: {reasons}", yellow=True)


# Databases -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a server on which databases can be created: TEST_DATABASE_URL, else a container of our own."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    password = uuid4().hex
    options = ["--tmpfs", "/var/lib/postgresql", "--env", f"POSTGRES_PASSWORD={password}"]
    command = ["postgres", "-c", "fsync=off"]
    with container("postgres:18-alpine", 5432, "TEST_DATABASE_URL", options=options, command=command) as address:
        yield f"postgresql://postgres:{password}@{address}/postgres"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis: TEST_REDIS_URL, else a container of our own."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
        return
    with container("redis:8-alpine", 6379, "TEST_REDIS_URL") as address:
        with Redis.from_url(f"redis://{address}", retry=Retry(ConstantBackoff(0.1), 300)) as redis:
            redis.ping()  # it may be starting up still
        yield f"redis://{address}"


@contextmanager
def container(
    image: str, port: int, variable: str, *, options: Sequence[str] = (), command: Sequence[str] = ()
) -> Iterator[str]:
    """Runs a server and gives its address; skips where there is no Docker."""
    if not docker_is_there():
        cannot_run(f"on {image}: no Docker engine answers, and {variable} is not set")
    publish = ["--publish", f"127.0.0.1::{port}"]
    with running(image, *publish, *options, command=command) as server:
        yield cli("port", server.name, f"{port}/tcp")


@pytest.fixture(scope="session")
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """A migrated database of this run's own."""
    name = f"test_{uuid4().hex}"
    asyncio.run(execute(postgresql_server, f"CREATE DATABASE {name}"))
    url = make_url(postgresql_server).set(database=name).render_as_string(hide_password=False)
    asyncio.run(migrate(DatabaseSettings(url=SecretStr(url))))
    yield url
    asyncio.run(execute(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)"))


async def execute(url: str, statement: str) -> None:
    """Runs one statement on a server that may be starting up still."""
    deadline = time.monotonic() + 60
    while True:
        try:
            connection = await asyncpg.connect(url)
            break
        except (OSError, asyncpg.PostgresError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
    await connection.execute(statement)
    await connection.close()


async def until_a_lock_is_waited_for(url: str) -> None:
    """Returns as soon as somebody waits for a lock in a database; on SQLite, which does not tell, after a while."""
    if url.startswith("sqlite"):
        await asyncio.sleep(0.3)
        return
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    connection = await asyncpg.connect(url)
    async with asyncio.timeout(60):
        while not await connection.fetchval(waiting):  # noqa: ASYNC110  there is no event
            await asyncio.sleep(0.02)
    await connection.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    asyncio.run(migrate(DatabaseSettings(url=SecretStr(f"sqlite:///{path}"))))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty, migrated database of each kind: what uses it runs on both."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "app.db")
        return f"sqlite:///{tmp_path}/app.db"
    url: str = request.getfixturevalue("postgresql_url")
    asyncio.run(execute(url, f"TRUNCATE {', '.join(Base.metadata.tables)} RESTART IDENTITY"))
    return url


# The application -------------------------------------------------------------------------------------------------

NO_LIMIT = "1000000/minute"
SECRET_KEY = "a secret key for tests, of 32 bytes or more"


def make_settings(**groups: Any) -> Settings:  # noqa: ANN401  each of its own kind
    """Makes settings that read nothing from the developer's environment: a group that is not given has its defaults."""
    defaults: dict[str, Any] = {
        "server": ServerSettings(),
        "database": DatabaseSettings(),
        "redis": RedisSettings(),
        "auth": AuthSettings(),
        "http": HTTPSettings(),
        "log": LogSettings(),
    }
    return Settings(environment="test", **defaults | groups)


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings with hashing cheap enough for hundreds of tests, and no limits: they do in a second what takes a day."""
    return make_settings(
        database=DatabaseSettings(url=SecretStr(database_url), migrate=False),
        auth=AuthSettings(
            secret_key=SecretStr(SECRET_KEY), argon2_memory_kib=64, argon2_time_cost=1, argon2_parallelism=1
        ),
        http=HTTPSettings(rate_limit=NO_LIMIT, rate_limit_login=NO_LIMIT, rate_limit_register=NO_LIMIT),
    )


class Service(NamedTuple):
    """The application while its lifespan runs, and somebody who is not logged in."""

    app: FastAPI
    state: State
    client: httpx.AsyncClient


@asynccontextmanager
async def serve(settings: Settings, *, prepared: bool = False, root_path: str = "") -> AsyncIterator[Service]:
    """Runs the application as a server would, with the lifespan's state in each request.

    `root_path` is where a proxy serves it, and clients ask for it.
    """
    app = create_app(settings)
    app.state.prepared = prepared
    async with lifespan(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": {**state}}, receive, send)

        transport = httpx.ASGITransport(with_state, root_path=root_path)
        hooks = {"response": [conforms_to(build_openapi(app))]}
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://test{root_path}", event_hooks=hooks
        ) as client:
            yield Service(app, state, client)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with serve(settings) as service:
        yield service


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    return service.client


@pytest.fixture
def state(service: Service) -> State:
    return service.state


@pytest.fixture
async def session(state: State) -> AsyncIterator[AsyncSession]:
    """A session for arranging what no route can, and for looking behind the routes."""
    async with state["write_sessions"]() as session:
        yield session


@pytest.fixture
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """What the application logs, with the context of each line."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as entries:
        yield entries


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """An environment for programs that are started: no setting of the developer's, and `app` can be imported."""
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in Settings.variables()}
    return {**inherited, "PYTHONPATH": str(ROOT)}
