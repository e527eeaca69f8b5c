"""A real server around a small application, for what only shows on a connection."""

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
    """Serves an application as an asynchronous context, which gives the address."""
    return _serve
