"""Answer HEAD requests like GET requests, but without the body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Makes every GET route also answer HEAD requests (RFC 9110, section 9.3.2).

    Monitoring tools and load balancers send HEAD requests. Without this middleware, each route would have to declare
    both methods, and every operation would be documented twice.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        get_scope = {**scope, "method": "GET"}

        async def send_without_body(message: Message) -> None:
            # The router and the rate limiter have added keys to `get_scope`. Copy them to the original scope, where the
            # access log reads them.
            scope.update(get_scope, method="HEAD")
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app(get_scope, receive, send_without_body)
