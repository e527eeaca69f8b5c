"""The application with WebSocket routes, for tests that run it on a server."""

from fastapi import APIRouter, FastAPI, HTTPException, WebSocket
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app import PREFIX
from app.errors import PermissionDenied
from app.limiter import rate_limit
from app.main import app
from app.users.dependencies import CurrentUser

router = APIRouter()


@router.websocket("/chat-in-a-test/{room}")
@rate_limit("login")
async def chat(websocket: WebSocket, room: int, user: CurrentUser) -> None:
    """Send each message back, prefixed with the user's id. Some messages, such as `crash`, make the route fail."""
    await websocket.accept()
    while True:
        text = await websocket.receive_text()
        match text:
            case "leave":
                await websocket.close(4000)
                return
            case "secret":
                raise PermissionDenied
            case "unusual status":
                raise HTTPException(499)
            case "outage":
                raise PoolTimeoutError
            case "crash":
                raise RuntimeError("boom")
            case "crash after close":
                await websocket.close()
                raise RuntimeError("boom")
        await websocket.send_text(f"{user.id} in {room}: {text}")


@router.websocket("/closed-in-a-test")
async def closed(websocket: WebSocket) -> None:
    """Reject every handshake."""
    await websocket.close()


@router.websocket("/broken-in-a-test")
async def broken() -> None:
    """Fail before the WebSocket is accepted."""
    raise RuntimeError("boom")


def add_websockets(app: FastAPI) -> None:
    """Add the WebSocket routes to an application."""
    app.include_router(router, prefix=PREFIX)


add_websockets(app)
