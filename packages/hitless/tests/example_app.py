"""A small application that does to a worker what applications do."""

import asyncio
import json
import logging
import os
import time

from hitless.accept import SLOTS
from hitless.drain import is_draining
from starlette.types import Receive, Scope, Send

log = logging.getLogger("gunicorn.error")


class Noisy:
    """Says so when it is freed, as it would be when Python ends in its own way."""

    def __del__(self) -> None:
        os.write(2, b"freed\n")


noisy = Noisy()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers each request with the worker's process id, or what its path asks for, in the way that it says."""
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    _, way, argument = scope["path"].split("/")
    body = str(os.getpid()).encode()
    if way == "wait":
        log.info("a request is waiting")
        await asyncio.sleep(float(argument))
    elif way == "block":
        log.info("the worker is blocked")
        time.sleep(float(argument))  # noqa: ASYNC251  what a real mistake looks like
    elif way == "counted":
        body = json.dumps([count - 1 for count in SLOTS if count]).encode()
    elif way == "draining":
        body = str(is_draining()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if way == "large":
        log.info("a large answer")
        await send({"type": "http.response.body", "body": b"x" * int(argument), "more_body": True})
    await send({"type": "http.response.body", "body": body})


async def live(receive: Receive, send: Send) -> None:
    """Never starts or ends, or fails, where the environment says so, and leaves a trace of each orderly end."""
    await receive()
    if os.environ.get("NEVER_STARTS"):
        await asyncio.Event().wait()
    if os.environ.get("FAILS_TO_START"):
        await send({"type": "lifespan.startup.failed", "message": "the lifespan does not want to"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if os.environ.get("NEVER_ENDS"):
        await asyncio.Event().wait()
    log.info("worker %d ended in order", os.getpid())
    await send({"type": "lifespan.shutdown.complete"})
