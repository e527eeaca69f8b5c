"""Give each request an id, and write the access log."""

import re
import secrets
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RateLimited
from app.logging import refusal_log, shorten
from app.middleware.paths import first_segment

access_log = structlog.stdlib.get_logger("app.access")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestContextMiddleware:
    """The outermost middleware, so that its id and its timer cover all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(16).encode()
        status, size, started_at = 0, 0, perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            else:
                size += len(message.get("body", b""))
            await send(message)

        structlog.contextvars.clear_contextvars()  # a pipelined request starts in the context of the one before
        structlog.contextvars.bind_contextvars(request_id=request_id.decode())
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            if status != RateLimited.status or refusal_log.allow():
                route = getattr(scope.get("route"), "path", None)
                # Health checks are frequent, and a failing one is visible elsewhere.
                log = access_log.debug if route and first_segment(route) == "health" else access_log.info
                # The fields of the combined log format. The query is left out: it may contain an email address.
                log(
                    "request",
                    method=scope["method"],
                    path=shorten(scope["raw_path"].decode("latin-1")),
                    status=status,
                    duration_ms=round((perf_counter() - started_at) * 1000, 2),
                    route=route,
                    bytes=size,
                    http_version=scope["http_version"],
                    client=scope["client"][0] if scope["client"] else None,
                    referer=_decode(headers.get(b"referer")),
                    user_agent=_decode(headers.get(b"user-agent")),
                )


def _decode(value: bytes | None) -> str | None:
    return None if value is None else shorten(value.decode("latin-1"))
