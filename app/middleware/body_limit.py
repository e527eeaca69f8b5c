"""Refuses a body that is too large: before it is read where its length is announced, else while it streams in."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PayloadTooLarge, error_response

# How long a client that is still sending may take to notice the refusal. A connection that is closed before all was
# read is reset, and the answer with it may be lost.
LINGER_SECONDS = 1.0


class BodyLimitMiddleware:
    """Whatever the route does with its body, it does not run for one over the limit."""

    def __init__(self, app: ASGIApp, *, max_size: int) -> None:
        self.app = app
        self.max_size = max_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = 0
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == b"transfer-encoding":  # it overrules any length (RFC 9112, section 6.3)
                    await self._with_streamed_body(scope, receive, send)
                    return
                if name == b"content-length":
                    # The server has refused what is not a number, and passes on no more bytes than this.
                    length = int(value)
        if length > self.max_size:
            await _refuse(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _with_streamed_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Holds the body until it is complete, since only then its size is known."""
        body = bytearray()
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_size:
                await _refuse(scope, receive, send)
                return
        if message["type"] == "http.request":
            message = {"type": "http.request", "body": bytes(body), "more_body": False}
        # else the client left in the middle, and the route shall know.
        held: Message | None = message

        async def receive_held() -> Message:
            nonlocal held
            if held is None:
                return await receive()
            message, held = held, None
            return message

        await self.app(scope, receive_held, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once and completely, then lets the client stop sending before the server closes the connection."""

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
