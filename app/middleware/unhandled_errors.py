"""Respond to unhandled exceptions and cancelled requests."""

import asyncio
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError, ServiceUnavailable, error_response
from app.logging import shorten

log = structlog.stdlib.get_logger("app.error")


class UnhandledErrorMiddleware:
    """Responds with 500 to unhandled exceptions, and re-raises them, so that the server logs them and tests fail.

    This class is inside the middleware that adds headers, so that its responses have the headers, too.
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
            # The server is stopping, and the grace period is over. The exception is not re-raised, because the task
            # ends without it, and Uvicorn would log it with a traceback.
            if is_complete:
                log.warning("cancelled after the response", path=shorten(scope["path"]))
            elif not has_started:
                await error_response(ServiceUnavailable("Shutting down"))(scope, receive, send)
        except Exception:  # any bug in a route; re-raised below
            # If the response is complete, either a mounted application has responded with 500, or a background task has
            # failed.
            if is_complete and status < HTTPStatus.INTERNAL_SERVER_ERROR:  # the server logs the error itself
                log.warning("failed after the response", path=shorten(scope["path"]))
            elif not has_started:  # otherwise the server closes the connection after the partial response
                await error_response(InternalError)(scope, receive, send)
            raise
