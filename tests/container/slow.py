"""The service with routes that no product should have; mounted into containers, as the image has none of them."""

import asyncio
import os
import time

from app.main import app


@app.get("/slow/{seconds}")
async def slow(seconds: float) -> int:
    """Takes its time, and lets others work meanwhile."""
    await asyncio.sleep(seconds)
    return os.getpid()


@app.get("/stuck/{seconds}")
async def stuck(seconds: float) -> int:
    """Holds the event loop, as a real mistake does."""
    time.sleep(seconds)  # noqa: ASYNC251  the mistake
    return os.getpid()
