"""Unhandled exceptions, and requests cancelled at shutdown."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app import PREFIX
from app.middleware.unhandled_errors import UnhandledErrorMiddleware
from tests.conftest import Service


async def test_exception_during_response_is_raised_and_truncates_it() -> None:
    async def respond_half(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("boom")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("no message may be read")

    with pytest.raises(RuntimeError, match="boom"):
        await UnhandledErrorMiddleware(respond_half)({"type": "http"}, receive, send)

    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_request_cancelled_at_shutdown_returns_503(
    service: Service, logs: list[structlog.typing.EventDict]
) -> None:
    has_started = asyncio.Event()

    @service.app.get(PREFIX + "/forever")
    async def forever() -> None:
        has_started.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(service.client.get("/forever"))
    await has_started.wait()
    request.cancel()
    response = await request

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json() == {"error": "Shutting down", "type": "service_unavailable"}
    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 503)]


async def test_response_cancelled_at_shutdown_is_truncated(
    service: Service, logs: list[structlog.typing.EventDict]
) -> None:
    has_started = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        has_started.set()
        await asyncio.Event().wait()

    @service.app.get(PREFIX + "/forever")
    async def forever() -> StreamingResponse:
        return StreamingResponse(chunks())

    request = asyncio.create_task(service.client.get("/forever"))
    await has_started.wait()
    request.cancel()
    with pytest.raises(AssertionError):  # raised by httpx's transport, because the response is incomplete
        await request

    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 200)]
