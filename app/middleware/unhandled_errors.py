"""Respond to unhandled exceptions and cancelled requests."""

import asyncio

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError, ServiceUnavailable, error_response

log = structlog.stdlib.get_logger("app.error")


class UnhandledErrorMiddleware:
    """Logs any unhandled exception once, and responds 500.

    It is inside the middleware that adds headers, so that these responses have them as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        has_started = False

        async def track_start(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, track_start)
        except asyncio.CancelledError:  # the server stops, and this request exceeds its grace
            if not has_started:
                await error_response(ServiceUnavailable("Shutting down"))(scope, receive, send)
        except Exception:  # any: otherwise the server would respond in another format
            log.exception("unhandled exception")
            if not has_started:  # else the server closes the connection after the partial response
                await error_response(InternalError)(scope, receive, send)
