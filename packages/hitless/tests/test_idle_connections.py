"""A worker does not close an idle connection if the next request has arrived but has not been read yet."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from example_app import app
from hitless.protocol import LimitedProtocol
from uvicorn import Config
from uvicorn.server import ServerState

GET = b"GET /pid HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Connection(NamedTuple):
    """A connection that is idle after one request: the client's socket and the server's protocol instance."""

    client: socket.socket
    protocol: LimitedProtocol


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    config = Config(app, lifespan="off", log_config=None)
    client, accepted = socket.socketpair()
    client.setblocking(False)
    with client:
        _, protocol = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: LimitedProtocol(config, ServerState(), {}), accepted
        )
        client.send(GET)
        await read_response(client)
        yield Connection(client, protocol)
        protocol.transport.close()
        assert await asyncio.get_running_loop().sock_recv(client, 1000) == b""


async def read_response(client: socket.socket) -> bytes:
    response = b""
    while not response.endswith(b"0\r\n\r\n"):
        response += (part := await asyncio.get_running_loop().sock_recv(client, 1000))
        assert part, "closed without a response"
    return response


@pytest.mark.parametrize("method", ["timeout_keep_alive_handler", "shutdown"])
async def test_idle_connection_with_unread_bytes_is_served(connection: Connection, method: str) -> None:
    connection.client.send(GET)
    getattr(connection.protocol, method)()  # before the event loop reads the request

    assert (await read_response(connection.client)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_connection_whose_request_has_begun_is_served_during_shutdown(connection: Connection) -> None:
    connection.client.send(GET[:10])
    while connection.protocol.deadline.received != 10:  # noqa: ASYNC110  no event
        await asyncio.sleep(0)
    connection.protocol.shutdown()
    connection.client.send(GET[10:])

    assert (await read_response(connection.client)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("method", ["timeout_keep_alive_handler", "shutdown"])
async def test_idle_connection_without_unread_bytes_is_closed(connection: Connection, method: str) -> None:
    getattr(connection.protocol, method)()

    assert await asyncio.get_running_loop().sock_recv(connection.client, 1000) == b""


async def test_used_connection_is_not_closed_as_unused(connection: Connection) -> None:
    connection.protocol.close_if_unused()
    connection.client.send(GET)

    assert (await read_response(connection.client)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_connection_that_is_closing_is_left_alone(connection: Connection) -> None:
    connection.protocol.transport.close()

    connection.protocol.timeout_keep_alive_handler()
    connection.protocol.shutdown()
