"""Failed startups: a StartupError is reported in one line, any other exception with its traceback."""

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.errors import StartupError
from app.middleware.startup_errors import StartupErrorMiddleware


class FailingLifespan:
    """An ASGI application whose startup fails. If `reports` is true, it sends a traceback first, as Starlette does."""

    def __init__(self, error: Exception, *, reports: bool) -> None:
        self.error = error
        self.reports = reports

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        if self.reports:
            await send({"type": "lifespan.startup.failed", "message": "Traceback …"})
        raise self.error


async def receive() -> Message:
    raise AssertionError("no message may be read")


async def test_startup_error_replaces_traceback() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    app = StartupErrorMiddleware(FailingLifespan(StartupError("No database"), reports=True))
    await app({"type": "lifespan"}, receive, send)

    assert sent == [{"type": "lifespan.startup.failed", "message": "No database"}]


@pytest.mark.parametrize("reports", [True, False])
async def test_other_exception_is_passed_through(reports: bool) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="boom"):
        await StartupErrorMiddleware(FailingLifespan(RuntimeError("boom"), reports=reports))(
            {"type": "lifespan"}, receive, send
        )

    assert sent == ([{"type": "lifespan.startup.failed", "message": "Traceback …"}] if reports else [])
