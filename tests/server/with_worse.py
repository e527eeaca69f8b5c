"""The application with routes that no service should have."""

import asyncio

from app.auth.schemas import Credentials
from app.main import app


@app.post("/crash")
async def crash(credentials: Credentials) -> None:
    """Fails with a secret in a local variable and, if it can be seen there, in the exception's text."""
    raise RuntimeError(f"cannot cope with {credentials}")


@app.get("/slow")
async def slow() -> None:
    """Takes twice as long as impatient_conf.py gives a request to arrive."""
    await asyncio.sleep(4)
