"""What nobody foresaw is logged, and answered if that is still possible."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.middleware.unhandled_errors import UnhandledErrorMiddleware
from tests.conftest import Service


async def test_a_failure_in_the_middle_of_a_response_ends_it(logs: list[structlog.typing.EventDict]) -> None:
    async def half(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("boom")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    await UnhandledErrorMiddleware(half)({"type": "http"}, receive, send)

    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert [entry["event"] for entry in logs] == ["unhandled exception"]


async def test_a_request_that_the_ending_server_cancels_is_answered(
    service: Service, logs: list[structlog.typing.EventDict]
) -> None:
    has_begun = asyncio.Event()

    @service.app.get("/forever")
    async def forever() -> None:
        has_begun.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(service.client.get("/forever"))
    await has_begun.wait()
    request.cancel()
    response = await request

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json() == {"error": "Shutting down", "type": "service_unavailable"}
    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 503)]


async def test_a_response_that_the_ending_server_cancels_stays_unfinished(
    service: Service, logs: list[structlog.typing.EventDict]
) -> None:
    has_begun = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        has_begun.set()
        await asyncio.Event().wait()

    @service.app.get("/forever")
    async def forever() -> StreamingResponse:
        return StreamingResponse(chunks())

    request = asyncio.create_task(service.client.get("/forever"))
    await has_begun.wait()
    request.cancel()
    with pytest.raises(AssertionError):  # of httpx's transport, about the missing end
        await request

    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 200)]
