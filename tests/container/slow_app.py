"""The service with additional slow routes. Tests of shutdown and timeouts mount this file into a container."""

import asyncio
import os
import time

import structlog

from app import PREFIX
from app.main import app

log = structlog.stdlib.get_logger("slow")


@app.get(PREFIX + "/slow/{seconds}")
async def slow(seconds: float) -> int:
    """Sleep without blocking the event loop, and return the worker's process id."""
    log.info("slow request")
    await asyncio.sleep(seconds)
    return os.getpid()


@app.get(PREFIX + "/stuck/{seconds}")
async def stuck(seconds: float) -> int:
    """Block the event loop, as a buggy route might."""
    log.info("slow request")
    time.sleep(seconds)  # noqa: ASYNC251  blocks on purpose
    return os.getpid()
