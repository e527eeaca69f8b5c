"""An ASGI application for tests. The request path can make it wait, block the event loop, send much data or fail."""

import asyncio
import contextlib
import json
import logging
import os
import time
from pathlib import Path

from hitless.accept import SLOTS
from hitless.drain import is_draining
from starlette.types import Receive, Scope, Send

log = logging.getLogger("gunicorn.error")
FAILING = Path(os.environ.get("STARTUP_FAILS_WITH", "nothing"))


class Noisy:
    """An object that writes a line when Python frees it. On a normal exit, Python frees all objects."""

    def __del__(self) -> None:
        os.write(2, b"freed\n")


noisy = Noisy()


async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901, PLR0912  one branch per action
    """Run the action named in the path. Respond with its result, or with the worker's process id if it has none."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    if scope["type"] == "websocket":
        await websocket(scope["path"], receive, send)
        return
    _, action, *arguments = scope["path"].split("/")
    body = str(os.getpid()).encode()
    if action == "sleep":
        log.info("a request is waiting")
        await asyncio.sleep(float(arguments[0]))
    elif action == "block":
        log.info("the worker is blocked")
        time.sleep(float(arguments[0]))  # noqa: ASYNC251  deliberately blocks the event loop
    elif action == "connections":
        body = json.dumps([count - 1 for count in SLOTS if count]).encode()
    elif action == "client":
        body = str(scope["client"][0]).encode()
    elif action == "draining":
        body = str(is_draining()).encode()
    elif action == "headers":
        body = repr(scope["headers"]).encode()
    elif action == "poll":  # like Starlette's `Request.is_disconnected`
        for _ in range(100):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(receive(), 0.01)
    elif action == "read":
        body = str(await count_body(receive)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if action == "large":
        log.info("sending a large response")
        await send({"type": "http.response.body", "body": b"x" * int(arguments[0]), "more_body": True})
    if action == "stream":
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await asyncio.sleep(float(arguments[0]))
    await send({"type": "http.response.body", "body": body})
    if action == "fail":
        raise RuntimeError("after the response")


async def websocket(path: str, receive: Receive, send: Send) -> None:
    """Answer each message with the worker's process id, and the text or the length of binary data.

    Some paths and messages make the application wait, send more, or refuse.
    """
    await receive()
    if path == "/handshake":
        log.info("a handshake is waiting")
        await asyncio.sleep(2)
    if path == "/rejected":
        await send({"type": "websocket.http.response.start", "status": 418, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no"})
        return
    await send({"type": "websocket.accept"})
    if path == "/push":
        while True:
            await send({"type": "websocket.send", "text": "news"})
            await asyncio.sleep(0.05)
    if path == "/busy":
        log.info("the application takes no message")
        await asyncio.sleep(4)
    while (message := await receive())["type"] == "websocket.receive":
        data = message.get("text") or str(len(message.get("bytes") or b""))
        if data.startswith("sleep "):
            log.info("a message is being handled")
            await asyncio.sleep(float(data.removeprefix("sleep ")))
        if handled := os.environ.get("HANDLED_FILE"):
            await asyncio.sleep(0.2)  # makes it likely that messages are in progress when a worker stops
            with open(handled, "a") as file:  # noqa: ASYNC230, PTH123  one small write
                file.write(f"{data}\n")
        await send({"type": "websocket.send", "text": f"{os.getpid()} {data}"})
    log.info("a WebSocket has ended with code %d", message["code"])


async def count_body(receive: Receive) -> int:
    """Read the request body and return its length in bytes."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            log.info("the client has disconnected")
            return length
        length, more = length + len(message["body"]), message["more_body"]
    return length


async def lifespan(receive: Receive, send: Send) -> None:
    """Depending on environment variables, hang at startup or shutdown, or fail at startup. Log a normal shutdown."""
    await receive()
    if os.environ.get("STARTUP_HANGS"):
        await asyncio.Event().wait()
    if os.environ.get("STARTUP_FAILS") or FAILING.exists():  # noqa: ASYNC240  fast enough
        await send({"type": "lifespan.startup.failed", "message": "the startup has failed"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if os.environ.get("SHUTDOWN_HANGS"):
        await asyncio.Event().wait()
    log.info("worker %d has shut down its lifespan", os.getpid())
    await send({"type": "lifespan.shutdown.complete"})
