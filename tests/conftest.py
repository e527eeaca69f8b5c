"""Shared fixtures: databases, the application, and clients."""

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import httpx
import pytest
import structlog
from availability import cannot_run, docker_problem
from fastapi import FastAPI
from processes import TIMEOUT
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp, Receive, Scope, Send

from app import PREFIX
from app.database import Base
from app.lifespan import State, lifespan
from app.logging import log_config
from app.main import create_app
from app.migrations import migrate
from app.settings import Settings
from tests import image, servers
from tests.conformance import check_conformance
from tests.smtp_server import MailServer, mail_server

ROOT = Path(__file__).parent.parent
NO_LIMIT = "1000000/minute"
RATE_LIMITS = [name for name in Settings.model_fields if name.startswith("rate_limit")]
SECRET_KEY = "a secret key for tests, of 32 bytes or more"

configure_structlog = structlog.configure


def configure_without_cache(**options: Any) -> None:  # noqa: ANN401  options have different types
    """Configure structlog without its cache. The `logs` fixture cannot capture the output of cached loggers."""
    configure_structlog(**options | {"cache_logger_on_first_use": False})


pytest.MonkeyPatch().setattr(structlog, "configure", configure_without_cache)
# Importing the application has set the log level. Lower it, so that the `logs` fixture captures every level.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("debug"))


# Groups of tests that run only if they are selected by mark (`pytest -m drills`) or by path.
GROUPS = ["server", "drills", "attack", "copies", "browser", "peers", "soak"]
FOLDERS = {
    "tests/server/": "server",
    "packages/hitless/": "server",
    "tests/container/": "drills",
    "tests/copies/": "copies",
    "tests/browser/": "browser",
}


def pytest_configure(config: pytest.Config) -> None:
    if config.args_source is config.ArgsSource.TESTPATHS and not config.option.markexpr:
        config.option.markexpr = f"not ({' or '.join(GROUPS)})"
    # Handle SIGTERM like Ctrl-C, so that fixtures stop the processes and containers that they have started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # only in the main process, not in the workers of pytest-xdist
        servers.start()
        image.start()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        servers.stop()
        image.stop()


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for folder, group in FOLDERS.items():
            if folder in item.path.as_posix() and not {"smoke", *GROUPS} & {mark.name for mark in item.iter_markers()}:
                item.add_marker(group)
        if "tests/container/" in item.path.as_posix():
            item.add_marker(pytest.mark.usefixtures("docker"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the CPU time of the run, and one line with the reasons for skipped tests.

    Unlike elapsed time, CPU time depends little on what else the machine is doing.
    """
    seconds = sum(os.times()[:4])
    terminalreporter.write_line(f"CPU time: {seconds:.0f} s, without that of containers")
    skipped: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        skipped[reason] = skipped.get(reason, 0) + 1
    if skipped:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in sorted(skipped.items()))
        terminalreporter.write_line(f"Not run here: {reasons}", yellow=True)


@pytest.fixture(scope="session")
def docker() -> str:
    """The name of the image under test. The image is built from the working tree unless it already exists.

    The test is skipped if Docker cannot be used or cannot download the base image. If the build fails, the test fails.
    """
    if problem := docker_problem():
        cannot_run(f"container tests: {problem}")
    return image.build()


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """Environment variables without settings, for programs started by tests. PYTHONPATH makes `app` importable."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


# Databases -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql_server() -> str:
    """The URL of a PostgreSQL server for test databases: TEST_DATABASE_URL if set, otherwise a container's URL."""
    return servers.postgresql_url()


@pytest.fixture(autouse=True)
def relaxed_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the timeouts for Redis and the readiness check, because the machine may be busy."""
    set_timeouts(monkeypatch, TIMEOUT)


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the timeouts for Redis and the readiness check to one second, for tests with an unresponsive server."""
    set_timeouts(monkeypatch, 1)


def set_timeouts(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in ("app.limiter", "app.lifespan", "app.health.router"):
        monkeypatch.setattr(f"{module}.REDIS_SECONDS", seconds)
    monkeypatch.setattr("app.health.router.READY_SECONDS", seconds)


@pytest.fixture(scope="session")
def redis_url() -> str:
    """The URL of a Redis server: TEST_REDIS_URL if set, otherwise a container's URL."""
    return servers.redis_url()


@pytest.fixture(scope="session")
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """The URL of a migrated PostgreSQL database, which only this test process uses."""
    name = f"test_{uuid4().hex}"
    asyncio.run(execute(postgresql_server, f"CREATE DATABASE {name}"))
    url = make_url(postgresql_server).set(database=name).render_as_string(hide_password=False)
    asyncio.run(migrate(make_settings(database_url=url)))
    yield url
    asyncio.run(execute(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)"))


async def execute(url: str, statement: str) -> None:
    """Execute one SQL statement. Retry while the server is still starting."""
    deadline = time.monotonic() + 60
    while True:
        try:
            connection = await asyncpg.connect(url)
            break
        except (OSError, asyncpg.PostgresError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
    await connection.execute(statement)
    await connection.close()


async def wait_for_blocked_statement(url: str, number: int = 1) -> None:
    """Wait until `number` statements are waiting for a lock.

    SQLite cannot report this, so sleep for a fixed time instead.
    """
    if url.startswith("sqlite"):
        await asyncio.sleep(0.3)
        return
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    connection = await asyncpg.connect(url)
    async with asyncio.timeout(60):
        while await connection.fetchval(waiting) < number:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.02)
    await connection.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database. Each test uses a copy of it."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    asyncio.run(migrate(make_settings(database_url=f"sqlite:///{path}")))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty, migrated database. Tests that use it run on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "app.db")
        return f"sqlite:///{tmp_path}/app.db"
    url: str = request.getfixturevalue("postgresql_url")
    asyncio.run(execute(url, f"TRUNCATE {', '.join(Base.metadata.tables)} RESTART IDENTITY"))
    return url


@pytest.fixture
async def mails() -> AsyncIterator[MailServer]:
    """An SMTP server on the loopback interface, which stores the emails that it receives."""
    async with mail_server() as server:
        yield server


# The application -----------------------------------------------------------------------------------------------------


def make_settings(**values: Any) -> Settings:  # noqa: ANN401  settings have different types
    """Build settings with cheap password hashes and no rate limits, so that the tests are fast.

    Email is disabled by default, because the background task that sends emails would write to the log and the database
    during tests of other features.
    """
    defaults: dict[str, Any] = {
        "environment": "test",
        "secret_key": SECRET_KEY,
        "argon2_memory_kib": 8,
        "argon2_time_cost": 1,
        "argon2_parallelism": 1,
        "mail": False,
        **dict.fromkeys(RATE_LIMITS, NO_LIMIT),
    }
    return Settings(**defaults | values)


def change(settings: Settings, **values: Any) -> Settings:  # noqa: ANN401  settings have different types
    """Return a copy of the settings with some values replaced and validated."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return Settings(**given | values)


@pytest.fixture
def settings(database_url: str) -> Settings:
    # These timeouts are longer than the defaults, because the machine may be busy.
    patient = {"database_connect_timeout": TIMEOUT, "database_pool_timeout": TIMEOUT}
    return make_settings(database_url=database_url, database_migrate=False, **patient)


class Service(NamedTuple):
    """The running application, its lifespan state, and an unauthenticated client."""

    app: FastAPI
    state: State
    client: httpx.AsyncClient


@cache
def openapi_document(*, mail: bool) -> dict[str, Any]:
    """Return the OpenAPI document with or without the routes that need email. No setting except `mail` affects it.

    It is cached, because building it takes 0.2 s of CPU time.
    """
    return create_app(make_settings(mail=mail)).openapi()


@asynccontextmanager
async def serve(
    settings: Settings, *, prepared: bool = False, root_path: str = "", raises: bool = True, sends_mail: bool = True
) -> AsyncIterator[Service]:
    """Run the application's lifespan and, as a server does, add the lifespan state to each request.

    Args:
        settings: The settings.
        prepared: Whether to skip the database checks at startup.
        root_path: The path prefix that clients use and a proxy strips.
        raises: Whether the client raises unhandled exceptions. If False, it returns a 500 response instead.
        sends_mail: Whether to send emails if the settings enable email. If False, the routes that need email exist,
            but no email is sent, and no background task changes the database.
    """
    app = create_app(settings)
    app.state.is_database_prepared = prepared
    if not sends_mail:
        app.state.mail_writers.clear()
    async with lifespan(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": {**state}}, receive, send)

        transport = httpx.ASGITransport(with_state, root_path=root_path, raise_app_exceptions=raises)
        hooks = {"response": [check_conformance(openapi_document(mail=settings.mail))]}
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://test{root_path}{PREFIX}", event_hooks=hooks
        ) as client:
            yield Service(app, state, client)


def with_state(service: Service) -> ASGIApp:
    """Return an ASGI application that adds the lifespan's state to each request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await service.app({**scope, "state": {**service.state}}, receive, send)

    return app


def client_at(host: str, app: ASGIApp) -> httpx.AsyncClient:
    """Return a client whose requests appear to come from the IP address `host`."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(host, 1234)), base_url=f"http://test{PREFIX}")


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with serve(settings) as service:
        yield service


@pytest.fixture
async def service_with_bug(settings: Settings) -> AsyncIterator[Service]:
    """The running application. Unhandled exceptions result in a 500 response, and are not raised in the test."""
    async with serve(settings, raises=False) as service:
        yield service


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    return service.client


@pytest.fixture
def state(service: Service) -> State:
    return service.state


@pytest.fixture
async def session(state: State) -> AsyncIterator[AsyncSession]:
    """A database session, for changes that no route can make and data that no route returns."""
    async with AsyncSession(state["engine"], expire_on_commit=False) as session:
        yield session


@pytest.fixture
def restore_logging() -> Iterator[None]:
    """Restore the process-wide state that `configure_logging` changes."""
    root = logging.getLogger()
    handlers, level, structlog_config = root.handlers[:], root.level, structlog.get_config()
    yield
    logging.captureWarnings(capture=False)
    structlog.configure(**structlog_config)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in log_config(make_settings())["loggers"]:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.level = [], True, logging.NOTSET


@pytest.fixture
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """The application's log entries, each with its context variables."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as entries:
        yield entries
