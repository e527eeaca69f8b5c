"""A database for all tests of middleware, and a Uvicorn server for those that need a real connection."""

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
    """A migrated SQLite database. Middleware does the same on PostgreSQL."""
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
    """Return an asynchronous context manager that serves an application and yields its host and port."""
    return _serve
