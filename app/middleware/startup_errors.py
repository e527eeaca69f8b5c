"""Report a failed startup in one line instead of a traceback."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import StartupError


class StartupErrorMiddleware:
    """Reports only the message of a StartupError. By default, Starlette reports the whole traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        failed: Message | None = None

        async def send_unless_failed(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = message  # held back until the exception is known
            else:
                await send(message)

        try:
            await self.app(scope, receive, send_unless_failed)
        except StartupError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        except BaseException:
            if failed:
                await send(failed)
            raise
