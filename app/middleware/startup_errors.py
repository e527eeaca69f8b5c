"""Ends a failed start with one line for a person, instead of a traceback."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import StartupError


class StartupErrorMiddleware:
    """Starlette reports a lifespan that fails by its traceback. For a StartupError its message says more."""

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
                failure = message  # what failed is known only when the exception arrives, right after this
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
