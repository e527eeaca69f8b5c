"""Make error handlers work for WebSocket routes. To add such a route, see docs/websockets.md."""

from contextlib import suppress
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import NotFound, PermissionDenied, error_response, status_phrase

# Close codes from RFC 6455, section 7.4.1, and from IANA's registry.
POLICY_VIOLATION, INTERNAL_ERROR, TRY_AGAIN_LATER = 1008, 1011, 1013


class WebSocketErrorMiddleware:
    """Sends an error as a response to the handshake, or as a close frame once the WebSocket is accepted.

    The response has the usual error body. It is also sent if the application closes the WebSocket before accepting it.

    The code of the close frame is 1008 for a status below 500, 1013 for 503, and 1011 for any other status.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return

        is_accepted = is_closed = False

        async def send_error(message: Message) -> None:
            nonlocal is_accepted, is_closed
            match message["type"], is_accepted:
                case "websocket.close", False:
                    error = PermissionDenied if "endpoint" in scope else NotFound
                    await error_response(error)(scope, receive, send)
                case "websocket.http.response.start", True:
                    if not is_closed:
                        is_closed = True
                        with suppress(OSError):  # the client or the server has closed the connection
                            await send(_close(message["status"]))
                case "websocket.http.response.body", True:
                    pass
                case _:
                    is_accepted = is_accepted or message["type"] == "websocket.accept"
                    is_closed = is_closed or message["type"] == "websocket.close"
                    await send(message)

        await self.app(scope, receive, send_error)


def _close(status: int) -> Message:
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        code = TRY_AGAIN_LATER
    else:
        code = INTERNAL_ERROR if status >= HTTPStatus.INTERNAL_SERVER_ERROR else POLICY_VIOLATION
    return {"type": "websocket.close", "code": code, "reason": status_phrase(status)}
