"""Limit the size of each request body, and the memory that all bodies take in a worker."""

import asyncio
from contextlib import suppress
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PayloadTooLarge, error_response
from app.middleware.paths import find_option, list_options, route_path

# Maximum time in seconds to read and discard the rest of a body that is too large. If a connection is closed while its
# buffer contains unread data, the kernel resets the connection, and the client may lose the response.
LINGER_SECONDS = 1.0
# Estimated number of bytes of memory that each occurrence of a character adds to the parsed JSON. For example, the
# estimate for `{"":0},` is 176 bytes, and the actual usage is 192 bytes. If only the bodies themselves were counted, 16
# concurrent bodies of 1 MiB could take 400 MiB.
PARSED_BYTES = {b"[": 64, b"{": 64, b":": 64, b",": 16, b'"': 16}
# Bodies up to this size, in bytes, are accepted even if the total memory of all bodies exceeds `max_total`. Otherwise,
# a few large uploads could block logins.
SMALL_SIZE = 16_384


class BodyRejected(HTTPException):
    """Raised while a route reads a body, if the body is too large, or if all bodies together use too much memory.

    This is an HTTPException rather than an AppError, because FastAPI turns any other exception that is raised while it
    reads a body into a 400 response.
    """


class BodyLimitMiddleware:
    """Responds with 413 if a body is too large, and with 503 if all bodies together would use too much memory.

    A body is too large if its Content-Length exceeds the limit, or if a route has read more than the limit. FastAPI's
    own limit does not apply to all bodies together, and its response lacks the API's error format.

    Only data that a route has read counts towards `max_total`, because the server buffers little of a body before that.
    If the route streams the body, only the current chunk counts.

    Args:
        app: The next application.
        routes: The routes. A route may have its own limit (FastAPI's `max_body_size`).
        max_size: The maximum body size of all other routes, in bytes.
        max_total: The maximum memory of all concurrent bodies, in bytes. It does not apply to a body that is streamed,
            small (see SMALL_SIZE), or the only one in memory.
    """

    def __init__(self, app: ASGIApp, *, routes: list[BaseRoute], max_size: int, max_total: int) -> None:
        self.app = app
        self.sizes = list_options(routes, lambda route: getattr(route, "max_body_size", None), max_size)
        self.max_size = max_size
        self.max_total = max_total
        self.total = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_size = find_option(self.sizes, scope["method"], route_path(scope), self.max_size)
        # If a header is repeated, use its first value, as FastAPI does.
        headers = dict(reversed(scope["headers"]))
        # Transfer-Encoding overrides Content-Length (RFC 9112, section 6.3). The server has already rejected a
        # Content-Length that is not a number, and never passes on more bytes than Content-Length allows.
        if b"transfer-encoding" not in headers and int(headers.get(b"content-length", 0)) > max_size:
            await _reject(scope, receive, send)
            return

        is_json = b"json" in headers.get(b"content-type", b"").lower()
        size, parsed_size, own_bytes, is_rejected = 0, 0, 0, False

        async def receive_limited() -> Message:
            nonlocal size, parsed_size, own_bytes, is_rejected
            message = await receive()
            body = message.get("body", b"")
            size += len(body)
            if is_json:
                parsed_size += sum(weight * body.count(character) for character, weight in PARSED_BYTES.items())
            other_bytes = self.total - own_bytes
            is_streamed = "streams_body" in scope  # see BodyStream in app/dependencies.py
            own_bytes = len(body) if is_streamed else size
            if not is_streamed and not message.get("more_body"):
                own_bytes += parsed_size  # last chunk: FastAPI parses the body next
            self.total = other_bytes + own_bytes
            is_rejected = size > max_size
            if is_rejected:
                raise BodyRejected(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, headers={"Connection": "close"})
            # A body is always accepted if no other body is in memory.
            if not is_streamed and size > SMALL_SIZE and other_bytes and other_bytes + size > self.max_total:
                raise BodyRejected(HTTPStatus.SERVICE_UNAVAILABLE)
            return message

        async def send_lingering(message: Message) -> None:
            await (_send_and_linger(message, receive, send) if is_rejected else send(message))

        try:
            await self.app(scope, receive_limited, send_lingering)
        finally:
            self.total -= own_bytes


async def _reject(scope: Scope, receive: Receive, send: Send) -> None:
    async def send_lingering(message: Message) -> None:
        await _send_and_linger(message, receive, send)

    await error_response(PayloadTooLarge, headers={"Connection": "close"})(scope, receive, send_lingering)


async def _send_and_linger(message: Message, receive: Receive, send: Send) -> None:
    """Send a response, but do not finish it until the request body is complete or LINGER_SECONDS have passed."""
    if message["type"] != "http.response.body":
        await send(message)
        return
    await send({**message, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body"})
