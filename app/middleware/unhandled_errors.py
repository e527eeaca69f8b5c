"""Respond to unhandled exceptions and cancelled requests."""

import asyncio

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError, ServiceUnavailable, error_response
from app.logging import shorten

log = structlog.stdlib.get_logger("app.error")


class UnhandledErrorMiddleware:
    """Responds with 500 to any unhandled exception, and raises it again. The server logs it, and a test fails with it.

    It is inside the middleware that adds headers, so that these responses have them as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        has_started = is_complete = False

        async def track_response(message: Message) -> None:
            nonlocal has_started, is_complete
            has_started = scope["type"] == "http"  # a WebSocket can be closed at any time
            await send(message)
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self.app(scope, receive, track_response)
        except asyncio.CancelledError:
            # The server is stopping, and the grace period is over. Not raised again: the task ends anyway, and Uvicorn
            # would log an error with a traceback.
            if is_complete:
                log.warning("cancelled after the response", path=shorten(scope["path"]))
            elif not has_started:
                await error_response(ServiceUnavailable("Shutting down"))(scope, receive, send)
        except Exception:  # any bug of a route; it is raised again
            if is_complete:
                # Such as in a background task. The server logs the error itself.
                log.warning("failed after the response", path=shorten(scope["path"]))
            elif not has_started:  # otherwise the server closes the connection after the partial response
                await error_response(InternalError)(scope, receive, send)
            raise
