"""Reject request bodies that are too large, by their Content-Length or while they stream in."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PayloadTooLarge, error_response

# Seconds that the connection stays open after a rejection. If it were closed with unread data in its buffer, it would
# be reset, and the client might never see the response.
LINGER_SECONDS = 1.0


class BodyLimitMiddleware:
    """Responds 413 before the route runs, whether or not the route reads the body."""

    def __init__(self, app: ASGIApp, *, max_size: int) -> None:
        self.app = app
        self.max_size = max_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = 0
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == b"transfer-encoding":  # it overrides any length (RFC 9112, section 6.3)
                    await self._buffer_body(scope, receive, send)
                    return
                if name == b"content-length":
                    # The server has rejected anything but a number, and passes on no more bytes than this.
                    length = int(value)
        if length > self.max_size:
            await _reject(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _buffer_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body before the route runs, because its size is known only at its end."""
        body = bytearray()
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_size:
                await _reject(scope, receive, send)
                return
        if message["type"] == "http.request":
            message = {"type": "http.request", "body": bytes(body), "more_body": False}
        held: Message | None = message  # or http.disconnect, which the route must see

        async def receive_held() -> Message:
            nonlocal held
            if held is None:
                return await receive()
            message, held = held, None
            return message

        await self.app(scope, receive_held, send)


async def _reject(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond completely, then give the client time to stop sending before the connection is closed."""

    async def send_and_linger(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})

    await error_response(PayloadTooLarge, headers={"Connection": "close"})(scope, receive, send_and_linger)
