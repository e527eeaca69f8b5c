"""A Uvicorn server for tests that need a real connection."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from starlette.types import ASGIApp
from uvicorn import Config, Server

Serve = Callable[[ASGIApp], AbstractAsyncContextManager[tuple[str, int]]]


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
