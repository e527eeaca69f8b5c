"""The application with two routes that leak a secret into an exception."""

from fastapi import BackgroundTasks

from app import PREFIX
from app.auth.schemas import Credentials
from app.main import app


@app.post(PREFIX + "/crash")
async def crash(credentials: Credentials) -> None:
    """Fail while a local variable holds a secret.

    The exception's message contains the variable's repr, which must not show the secret.
    """
    raise RuntimeError(f"cannot handle {credentials}")


@app.post(PREFIX + "/crash-after-response", status_code=202)
async def crash_after_response(credentials: Credentials, tasks: BackgroundTasks) -> None:
    """Fail in a background task."""
    tasks.add_task(crash, credentials)
