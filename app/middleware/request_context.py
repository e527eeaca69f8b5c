"""Give each request an id, and write the access log."""

import re
import secrets
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import PREFIX
from app.errors import RateLimited
from app.logging import refusal_log, shorten
from app.middleware.paths import is_below, route_path

access_log = structlog.stdlib.get_logger("app.access")

# A request whose background tasks take longer, in seconds, is logged a second time.
SLOW_BACKGROUND = 1.0
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestContextMiddleware:
    """The outermost middleware, so that its id and its timer cover all others.

    Args:
        app: The application.
        quiet: The roots of paths whose requests are logged at debug, such as `/health/`.
    """

    def __init__(self, app: ASGIApp, *, quiet: tuple[str, ...]) -> None:
        self.app = app
        self.quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        request_id = dict(scope["headers"]).get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(16).encode()
        outer = {**scope}
        status, size, started_at, sent_at = 0, 0, perf_counter(), 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal status, size, sent_at
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            else:
                size += len(message.get("body", b""))
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                sent_at = perf_counter()
                self._log(outer, scope, status, size, sent_at - started_at)

        structlog.contextvars.clear_contextvars()  # a pipelined request starts in the context of the one before
        structlog.contextvars.bind_contextvars(request_id=request_id.decode())
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            if not sent_at:  # the response is incomplete
                self._log(outer, scope, status, size, perf_counter() - started_at)
            elif (seconds := perf_counter() - sent_at) > SLOW_BACKGROUND:
                access_log.info("background task", duration_ms=round(seconds * 1000, 2))

    def _log(self, outer: Scope, scope: Scope, status: int, size: int, seconds: float) -> None:
        if status == RateLimited.status and not refusal_log.allow():
            return
        route = getattr(scope.get("route"), "path", None)
        if route is not None:
            # A mounted application adds its path to `root_path`. FastAPI leaves out the prefix of an included router.
            route = scope.get("root_path", "").removeprefix(outer.get("root_path", "")).removeprefix(PREFIX) + route
        # Health checks are frequent, and a failing one is visible elsewhere.
        log = access_log.debug if route and is_below(route_path(outer), self.quiet) else access_log.info
        headers = dict(outer["headers"])
        # The fields of the combined log format. The query is left out: it may contain an email address.
        log(
            "request",
            method=outer["method"],
            path=shorten(outer["raw_path"].decode("latin-1")),
            status=status,
            duration_ms=round(seconds * 1000, 2),
            route=route,
            bytes=size,
            http_version=outer["http_version"],
            client=outer["client"][0] if outer["client"] else None,
            referer=_decode(headers.get(b"referer")),
            user_agent=_decode(headers.get(b"user-agent")),
        )


def _decode(value: bytes | None) -> str | None:
    return None if value is None else shorten(value.decode("latin-1"))
