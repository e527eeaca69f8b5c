"""An in-process WebSocket client, which calls the application through ASGI, like httpx's ASGI transport."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Message, Scope

from tests.conftest import Service


class WebSocketClient:
    """A WebSocket client that exchanges ASGI messages with the application, in place of a server.

    Attributes:
        sent: The ASGI messages that the application has sent.
        received: The ASGI messages that are queued for the application.
        task: The task that runs the application.
    """

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.sent = asyncio.Queue[Message]()
        self.received = asyncio.Queue[Message]()
        self.received.put_nowait({"type": "websocket.connect"})

    def send(self, text: str) -> None:
        self.received.put_nowait({"type": "websocket.receive", "text": text})

    def close(self, code: int) -> None:
        self.received.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})

    async def receive(self) -> Message:
        """Wait for the application's next message, and return it."""
        async with asyncio.timeout(60):
            return await self.sent.get()


@asynccontextmanager
async def open_websocket(
    service: Service, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[WebSocketClient]:
    """Open a WebSocket. At the end of the `with` block, close it with code 1001 if it is still open."""
    client = WebSocketClient()
    raw = [(name.lower().encode(), value.encode()) for name, value in ({"Host": "test"} | (headers or {})).items()]
    scope: Scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"token=hidden",
        "root_path": "",
        "headers": raw,
        "client": ("127.0.0.1", 1234),
        "server": ("test", 80),
        "subprotocols": [],
        "state": {**service.state},
        "extensions": {"websocket.http.response": {}},
    }
    client.task = asyncio.create_task(service.app(scope, client.received.get, client.sent.put))
    try:
        yield client
    finally:
        client.close(1001)
        await client.task
