"""The application with a route that fails while it has a secret in its hands."""

from app.auth.schemas import Credentials
from app.main import app


@app.post("/crash")
async def crash(credentials: Credentials) -> None:
    """Has it in a local variable and, if it can be seen there, in the exception's text."""
    raise RuntimeError(f"cannot cope with {credentials}")
