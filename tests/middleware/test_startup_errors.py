"""A start that fails for a reason is reported by that reason, and any other by its traceback."""

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.errors import StartupError
from app.middleware.startup_errors import StartupErrorMiddleware


class Fails:
    """An application whose lifespan fails as Starlette's does."""

    def __init__(self, error: Exception, *, reports: bool) -> None:
        self.error = error
        self.reports = reports

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        if self.reports:
            await send({"type": "lifespan.startup.failed", "message": "Traceback …"})
        raise self.error


async def receive() -> Message:
    raise AssertionError("nothing is read")


async def test_a_reason_takes_the_place_of_the_traceback() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    app = StartupErrorMiddleware(Fails(StartupError("No database"), reports=True))
    await app({"type": "lifespan"}, receive, send)

    assert sent == [{"type": "lifespan.startup.failed", "message": "No database"}]


@pytest.mark.parametrize("reports", [True, False])
async def test_any_other_failure_is_left_as_it_is(reports: bool) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="boom"):
        await StartupErrorMiddleware(Fails(RuntimeError("boom"), reports=reports))({"type": "lifespan"}, receive, send)

    assert sent == ([{"type": "lifespan.startup.failed", "message": "Traceback …"}] if reports else [])
