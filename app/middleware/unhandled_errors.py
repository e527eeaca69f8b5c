"""Respond to unhandled exceptions and cancelled requests."""

import asyncio
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError, ServiceUnavailable, error_response
from app.logging import shorten

log = structlog.stdlib.get_logger("app.error")


class UnhandledErrorMiddleware:
    """Responds with 500 to unhandled exceptions, and re-raises them so that the server logs them and tests see them.

    This middleware runs inside the middleware that adds headers, so its own responses also have these headers. Those of
    Starlette's ServerErrorMiddleware, which is the outermost, would lack them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        has_started = is_complete = False
        status = 0

        async def track_response(message: Message) -> None:
            nonlocal has_started, is_complete, status
            status = message.get("status", status)
            has_started = scope["type"] == "http"  # a WebSocket can be closed at any time
            await send(message)
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self.app(scope, receive, track_response)
        except asyncio.CancelledError:
            # The server is stopping, and the grace period is over. Do not re-raise the exception, because Uvicorn would
            # log a traceback. The task is about to end anyway.
            if is_complete:
                log.warning("cancelled after the response", path=shorten(scope["path"]))
            elif not has_started:
                await error_response(ServiceUnavailable("Shutting down"))(scope, receive, send)
        except Exception:  # any bug in a route; re-raised below
            # The response may already be complete. A status of 500 then usually means that a mounted application sent
            # it and re-raised the exception. Otherwise, a background task or the code after the `yield` of a dependency
            # failed.
            if is_complete and status < HTTPStatus.INTERNAL_SERVER_ERROR:  # the server logs the error itself
                log.warning("failed after the response", path=shorten(scope["path"]))
            elif not has_started:  # otherwise the server closes the connection after the partial response
                await error_response(InternalError)(scope, receive, send)
            raise
