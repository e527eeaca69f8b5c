"""Fixtures: an SQLite database for all middleware tests, and a Uvicorn server for tests that need a TCP connection."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from starlette.types import ASGIApp
from uvicorn import Config, Server

Serve = Callable[[ASGIApp], AbstractAsyncContextManager[tuple[str, int]]]


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a migrated SQLite database. Middleware behaves the same on PostgreSQL, so one database suffices."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'app.db')}"


@asynccontextmanager
async def _serve(app: ASGIApp) -> AsyncIterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(Config(app, lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            await task


@pytest.fixture
def uvicorn() -> Serve:
    """Return an async context manager that serves an application and yields its host and port."""
    return _serve
