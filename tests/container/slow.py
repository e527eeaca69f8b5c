"""The service with routes that no product should have; mounted into containers, as the image has none of them."""

import asyncio
import os
import time

import structlog

from app.main import app

log = structlog.stdlib.get_logger("slow")


@app.get("/slow/{seconds}")
async def slow(seconds: float) -> int:
    """Takes its time, and lets others work meanwhile."""
    log.info("slow request")
    await asyncio.sleep(seconds)
    return os.getpid()


@app.get("/stuck/{seconds}")
async def stuck(seconds: float) -> int:
    """Holds the event loop, as a real mistake does."""
    log.info("slow request")
    time.sleep(seconds)  # noqa: ASYNC251  the mistake
    return os.getpid()
