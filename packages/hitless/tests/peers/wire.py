# ruff: noqa: ANN401, SLF001  httpx2, and parts of Starlette's `TestClient` that have no types
"""A pytest plugin: Starlette's `TestClient` sends its requests over TCP, to hitless or to Uvicorn.

The server runs in a thread, because tests change the application between requests. All clients without a `with` block
share one server, which has no lifespan. A client with such a block has a server of its own, which runs the lifespan.
WIRE_SERVER is `hitless` or `uvicorn`.
"""

import asyncio
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from mmap import mmap
from typing import Any

import hitless.server
import starlette.testclient
from hitless.protocol import LimitedProtocol
from hitless.server import GracefulServer
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server

# httpx2, or httpx if that is missing.
httpx: Any = starlette.testclient.httpx  # type: ignore[attr-defined]

TIMEOUT = 30  # seconds; longer than anything in these tests takes
worker_numbers = itertools.count()


class Call:
    """One call of the application, and the exception that it has raised."""

    def __init__(self) -> None:
        self.has_returned = threading.Event()
        self.error: BaseException | None = None


class ServerThread(threading.Thread):
    """A server in a thread.

    Attributes:
        app: The application. It may be replaced between requests.
        root_path: The path prefix in its scope.
        calls: The calls of the application that no client has waited for yet.
        connections: A connection pool for all clients. It has no TLS, which would take 20 ms to set up.
    """

    def __init__(self, app: ASGIApp | None = None, root_path: str = "") -> None:
        super().__init__(daemon=True)
        self.app = app
        self.root_path = root_path
        self.calls: list[Call] = []
        self.connections = httpx.HTTPTransport(verify=False)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.config = Config(
            self.call_app,
            lifespan="on" if app else "off",
            ws="none",
            interface="asgi3",
            log_config=None,
            timeout_keep_alive=2 * TIMEOUT,
        )
        self.server = self.make_server()
        self.is_started = threading.Event()
        self.start()
        assert self.is_started.wait(TIMEOUT)

    def make_server(self) -> Server:
        if os.environ["WIRE_SERVER"] == "uvicorn":
            self.config.http = "httptools"
            return Server(self.config)
        self.config.http = LimitedProtocol
        return GracefulServer(
            self.config,
            worker=next(worker_numbers),
            phase=mmap(-1, 1),
            notify=lambda: None,
            grace_seconds=TIMEOUT,
        )

    def run(self) -> None:
        async def serve() -> None:
            serving = asyncio.create_task(self.server.serve([self.listener]))
            while not (self.server.started or serving.done()):  # noqa: ASYNC110  Uvicorn has no event for it
                await asyncio.sleep(0.001)
            self.is_started.set()
            await serving

        with suppress(SystemExit), asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(serve())
        self.is_started.set()  # or the lifespan has failed to start

    def stop(self) -> None:
        self.connections.close()
        self.server.should_exit = True
        self.join(TIMEOUT)
        assert not self.is_alive()

    async def call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        call = Call()
        self.calls.append(call)
        try:
            await self.app({**scope, "root_path": self.root_path}, receive, send)
        except BaseException as error:
            call.error = error
            raise
        finally:
            call.has_returned.set()

    def wait_for_calls(self, *, raise_errors: bool) -> None:
        """Wait until the application has returned, as `TestClient` does."""
        calls, self.calls = self.calls, []
        for call in calls:
            assert call.has_returned.wait(TIMEOUT)
            if call.error:
                # After an exception, Uvicorn closes the connection, even if the response does not announce it.
                self.connections.close()
                self.connections = httpx.HTTPTransport(verify=False)
            if call.error and raise_errors:
                raise call.error


class Stream(httpx.SyncByteStream):  # type: ignore[misc]
    """The body of a response. Closing it waits until the application has returned."""

    def __init__(self, stream: Any, server: ServerThread, *, raise_errors: bool) -> None:
        self.stream = stream
        self.server = server
        self.raise_errors = raise_errors

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.stream
        except httpx.RemoteProtocolError:  # the application has failed in the middle of its response
            self.close()
            raise

    def close(self) -> None:
        self.stream.close()
        self.server.wait_for_calls(raise_errors=self.raise_errors)


shared_servers: list[ServerThread] = []


class WireTransport(httpx.BaseTransport):  # type: ignore[misc]
    """The transport of a `TestClient`, with the arguments of the one that it replaces."""

    def __init__(self, app: ASGIApp, *, raise_server_exceptions: bool, root_path: str, **_: object) -> None:
        self.app = app
        self.root_path = root_path
        self.raise_errors = raise_server_exceptions
        self.own_server: ServerThread | None = None

    def start(self) -> None:
        self.own_server = ServerThread(self.app, self.root_path)
        if not self.own_server.server.started:
            raise RuntimeError("The lifespan has failed to start")

    def stop(self) -> None:
        assert self.own_server
        self.own_server.stop()
        self.own_server = None

    def shared_server(self) -> ServerThread:
        if not shared_servers:
            shared_servers.append(ServerThread())
        shared_servers[0].app = self.app
        shared_servers[0].root_path = self.root_path
        return shared_servers[0]

    def handle_request(self, request: Any) -> Any:
        if request.url.scheme in {"ws", "wss"}:
            raise NotImplementedError("WebSockets are not sent over TCP")
        server = self.own_server or self.shared_server()
        headers = request.headers.copy()
        if request.url.scheme == "https":  # as behind a proxy that terminates TLS
            headers["x-forwarded-proto"] = "https"
        url = request.url.copy_with(scheme="http", host="127.0.0.1", port=server.port)
        sent = httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=request.extensions)
        response = server.connections.handle_request(sent)
        response.stream = Stream(response.stream, server, raise_errors=self.raise_errors)
        return response


def enter(client: Any) -> Any:
    client._transport.start()
    return client


def leave(client: Any, *_: object) -> None:
    client._transport.stop()


def pytest_configure() -> None:
    # Clients in these tests have stopped before their server does.
    hitless.server.LAST_REQUESTS_SECONDS = 0.0
    starlette.testclient._TestClientTransport = WireTransport  # type: ignore[misc, assignment]
    TestClient.__enter__ = enter  # type: ignore[method-assign]
    TestClient.__exit__ = leave  # type: ignore[method-assign]
