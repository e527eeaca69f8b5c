"""Assign an id to each request and each WebSocket, and write the access log."""

import re
import secrets
from http import HTTPStatus
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import PREFIX
from app.errors import RateLimited
from app.logging import refusal_log, shorten
from app.middleware.paths import RESPONSE_STARTS, is_below, route_path

access_log = structlog.stdlib.get_logger("app.access")

# Background tasks that take longer than this many seconds are logged on a separate line.
SLOW_BACKGROUND = 1.0
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestContextMiddleware:
    """Assigns request ids and writes the access log.

    This is the outermost middleware that handles requests, so the id and the measured time cover all other middleware.

    Args:
        app: The application.
        quiet: Paths with a trailing slash, such as `/health/`. Requests to routes at or below these paths are logged at
            DEBUG level.
    """

    def __init__(self, app: ASGIApp, *, quiet: tuple[str, ...]) -> None:
        self.app = app
        self.quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        request_id = dict(scope["headers"]).get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(16).encode()
        outer = {**scope}
        status, size, started_at, sent_at = 0, 0, perf_counter(), 0.0
        close_code: int | None = None

        async def receive_close_code() -> Message:
            nonlocal close_code
            message = await receive()
            close_code = close_code or _close_code(message)
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, size, sent_at, close_code
            if message["type"] in RESPONSE_STARTS:
                status = message.get("status", HTTPStatus.SWITCHING_PROTOCOLS.value)
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            else:
                close_code = close_code or _close_code(message)
                size += len(message.get("body") or message.get("bytes") or (message.get("text") or "").encode())
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                sent_at = perf_counter()
                self._log(outer, scope, status, size, sent_at - started_at)

        structlog.contextvars.clear_contextvars()  # a pipelined request starts in the context of the previous one
        structlog.contextvars.bind_contextvars(request_id=request_id.decode())
        try:
            await self.app(scope, receive_close_code, send_with_id)
        finally:
            if not sent_at:  # the response is incomplete, or a WebSocket has ended
                self._log(outer, scope, status, size, perf_counter() - started_at, close_code)
            elif (seconds := perf_counter() - sent_at) > SLOW_BACKGROUND:
                access_log.info("background task", duration_ms=round(seconds * 1000, 2))

    def _log(  # noqa: PLR0913, PLR0917  each is a field of the line
        self, outer: Scope, scope: Scope, status: int, size: int, seconds: float, close_code: int | None = None
    ) -> None:
        route = getattr(scope.get("route"), "path", None)
        is_quiet = route is not None and is_below(route_path(outer), self.quiet)
        # Clients can send any number of requests that exceed a rate limit or are not counted, so log only some of them.
        is_accepted = "rate_limit" in scope and status != RateLimited.status
        if not (is_quiet or is_accepted or refusal_log.allow()):
            return
        if route is not None:
            # For a route of a mounted application, prepend the mount path, which is part of `root_path`. Then remove
            # PREFIX. Routes are logged without it, but FastAPI includes it in the paths of mounts and WebSockets.
            route = (scope.get("root_path", "").removeprefix(outer.get("root_path", "")) + route).removeprefix(PREFIX)
        # Log health checks at DEBUG level, because they are frequent and their failures are visible elsewhere.
        log = access_log.debug if is_quiet else access_log.info
        headers, is_websocket = dict(outer["headers"]), outer["type"] == "websocket"
        # Log the fields of Apache's combined log format, but omit the query string, which may contain an email address.
        log(
            "websocket" if is_websocket else "request",
            method=outer.get("method", "GET"),
            path=shorten(outer["raw_path"].decode("latin-1")),
            status=status,
            duration_ms=round(seconds * 1000, 2),
            route=route,
            bytes=size,
            http_version=outer["http_version"],
            client=shorten(outer["client"][0]) if outer["client"] else None,
            referer=_decode(headers.get(b"referer")),
            user_agent=_decode(headers.get(b"user-agent")),
            **({"close_code": close_code} if is_websocket else {}),
        )


def _close_code(message: Message) -> int | None:
    """Return the close code if the message ends a WebSocket, otherwise None.

    To add a WebSocket route, see docs/websockets.md.
    """
    is_last = message["type"] in {"websocket.close", "websocket.disconnect"}
    return message.get("code", 1000) if is_last else None  # 1000 is ASGI's default


def _decode(value: bytes | None) -> str | None:
    return None if value is None else shorten(value.decode("latin-1"))
