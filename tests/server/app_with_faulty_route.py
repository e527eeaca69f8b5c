"""The application with a route that leaks a secret into an exception."""

from app.auth.schemas import Credentials
from app.main import app


@app.post("/crash")
async def crash(credentials: Credentials) -> None:
    """Fail with a secret in a local variable and, if its repr shows it, in the message of the exception."""
    raise RuntimeError(f"cannot handle {credentials}")
