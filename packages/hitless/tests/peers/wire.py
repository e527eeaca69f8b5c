# ruff: noqa: ANN401, SLF001  httpx2, and parts of Starlette's `TestClient` that have no types
"""A pytest plugin that makes Starlette's `TestClient` send its requests over TCP, to hitless or to Uvicorn.

Servers run in threads, because tests change the application between requests. All clients used without a `with` block
share one server, which runs no lifespan. A client used in a `with` block has its own server, which runs the lifespan.
WIRE_SERVER selects `hitless` or `uvicorn`.
"""

import asyncio
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from mmap import mmap
from typing import Any, Self

import hitless.server
import starlette.testclient
from hitless.protocol import LimitedProtocol
from hitless.server import GracefulServer
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from uvicorn import Config, Server
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

# httpx2, or httpx if httpx2 is not installed.
httpx: Any = starlette.testclient.httpx  # type: ignore[attr-defined]

TIMEOUT = 30  # seconds; no step of these tests takes longer
# Headers to remove from the handshake request of `TestClient`, because `websockets` sets them itself.
HANDSHAKE_HEADERS = {"host", "connection", "sec-websocket-key", "sec-websocket-version"}
worker_numbers = itertools.count()


class Call:
    """A call to the application, and the exception that the application raised."""

    def __init__(self) -> None:
        self.has_returned = threading.Event()
        self.error: BaseException | None = None


class ServerThread(threading.Thread):
    """A server that runs in a thread.

    Attributes:
        app: The application. Tests may replace it between requests.
        root_path: The path prefix in the application's scope.
        calls: Calls to the application that the next `wait_for_calls` waits for.
        connections: A connection pool for all clients. It does not create a TLS context, which would take 20 ms.
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
            ws="none",  # as in `hitless.Worker`, whose HTTP protocol opens WebSockets itself
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
            self.config.http, self.config.ws = "httptools", "auto"
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
            while not (self.server.started or serving.done()):  # noqa: ASYNC110  Uvicorn has no event for this
                await asyncio.sleep(0.001)
            self.is_started.set()
            await serving

        with suppress(SystemExit), asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(serve())
        self.is_started.set()  # set this even if the lifespan has failed to start

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
        """Wait until the application has returned from each call in `calls`, as `TestClient` does.

        If `raise_errors` is true, stop at the first call that failed, and raise its error.
        """
        calls, self.calls = self.calls, []
        for call in calls:
            assert call.has_returned.wait(TIMEOUT)
            if call.error:
                # If a response has begun, Uvicorn closes the connection after an exception without having sent
                # `Connection: close`, so the pool must not reuse it.
                self.connections.close()
                self.connections = httpx.HTTPTransport(verify=False)
            if call.error and raise_errors:
                raise call.error


class Stream(httpx.SyncByteStream):  # type: ignore[misc]
    """A response body. Closing it waits for the application to return."""

    def __init__(self, stream: Any, server: ServerThread, *, raise_errors: bool) -> None:
        self.stream = stream
        self.server = server
        self.raise_errors = raise_errors

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.stream
        except httpx.RemoteProtocolError:  # the application failed in the middle of its response
            self.close()
            raise

    def close(self) -> None:
        self.stream.close()
        self.server.wait_for_calls(raise_errors=self.raise_errors)


class WireSession(WebSocketTestSession):
    """A WebSocket connection. Leaving its `with` block closes it and waits for the application to return."""

    connection: ClientConnection
    call: Call
    close_code: int | None = None

    def __init__(self, server: ServerThread, request: Any) -> None:
        self.server = server
        self.request = request

    def __enter__(self) -> Self:
        headers = [item for item in self.request.headers.multi_items() if item[0] not in HANDSHAKE_HEADERS]
        try:
            self.connection = connect(
                str(self.request.url),
                address=("127.0.0.1", self.server.port),
                additional_headers=headers,
                user_agent_header=None,  # the headers contain it already
                proxy=None,
                open_timeout=TIMEOUT,
                close_timeout=TIMEOUT,
            ).__enter__()
        except InvalidStatus as refusal:
            self.server.wait_for_calls(raise_errors=True)
            # If the application closes the connection before accepting it, ASGI servers respond with 403 and do not
            # send the close code.
            if refusal.response.status_code == HTTPStatus.FORBIDDEN:
                raise WebSocketDisconnect(CloseCode.ABNORMAL_CLOSURE) from refusal
            raise
        self.call = self.server.calls.pop()  # other requests must not wait for this call
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.close()
        self.server.calls.append(self.call)
        try:
            # FastAPI's tests expect WebSocketDisconnect from the application, because they close the connection first.
            # `TestClient` also raises it after a failed assertion, which makes the test pass by mistake. Do not raise
            # it in that case.
            self.server.wait_for_calls(raise_errors=isinstance(error, WebSocketDisconnect | None))
        except WebSocketDisconnect as disconnect:
            if disconnect.code != self.close_code:
                message = f"The client has closed with {self.close_code}, the application got {disconnect.code}"
                raise RuntimeError(message) from disconnect
            raise

    def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.close_code = self.close_code or code
        self.connection.close(code, reason or "")

    def send(self, message: Message) -> None:
        self.connection.send(message["text"] if "text" in message else message["bytes"])

    def receive(self) -> Message:
        try:
            data = self.connection.recv(TIMEOUT)
        except ConnectionClosed:
            code, reason = self.connection.close_code, self.connection.close_reason
            return {"type": "websocket.close", "code": code, "reason": reason}
        return {"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data}


shared_servers: list[ServerThread] = []


class WireTransport(httpx.BaseTransport):  # type: ignore[misc]
    """A transport for `TestClient` that sends requests over TCP. It accepts the same arguments as Starlette's."""

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
        server = self.own_server or self.shared_server()
        if request.url.scheme == "ws":
            raise starlette.testclient._Upgrade(WireSession(server, request))  # `websocket_connect` returns the session
        headers = request.headers.copy()
        if request.url.scheme == "https":  # send the header of a proxy that terminates TLS
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
    # In these tests, clients stop before their server, so the server need not wait for them.
    hitless.server.LAST_REQUESTS_SECONDS = 0.0
    starlette.testclient._TestClientTransport = WireTransport  # type: ignore[misc, assignment]
    TestClient.__enter__ = enter  # type: ignore[method-assign]
    TestClient.__exit__ = leave  # type: ignore[method-assign]
