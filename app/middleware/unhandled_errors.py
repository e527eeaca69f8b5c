"""Answers where all else failed, or ended too soon."""

import asyncio

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError, ServiceUnavailable, error_response

log = structlog.stdlib.get_logger("app.error")


class UnhandledErrorMiddleware:
    """The last resort: whatever it is, it is logged and answered, once.

    It stands inside of what adds headers, so that this answer has them too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:  # the server ends, and this request took longer than it can wait
            if not has_started:
                await error_response(ServiceUnavailable("Shutting down"))(scope, receive, send)
        except Exception:  # whatever it is: nobody further out would answer in the one format
            log.exception("unhandled exception")
            if not has_started:  # else part of a response is out; the server sees that it stays unfinished
                await error_response(InternalError)(scope, receive, send)
