"""Report a failed startup in one line instead of a traceback."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import StartupError


class StartupErrorMiddleware:
    """Replaces Starlette's report of a failed lifespan, a traceback, with the message if it is a StartupError."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        failure: Message | None = None

        async def hold_failure(message: Message) -> None:
            nonlocal failure
            if message["type"] == "lifespan.startup.failed":
                failure = message  # the exception follows
            else:
                await send(message)

        try:
            await self.app(scope, receive, hold_failure)
        except StartupError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        except BaseException:
            if failure:
                await send(failure)
            raise
