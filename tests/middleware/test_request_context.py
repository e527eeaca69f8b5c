"""Each request has an id and a line in the access log, and an answer even where the server ends under it."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import structlog
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.factory import create_app
from app.middleware.request_context import RequestContextMiddleware
from app.settings import Settings
from tests.people import join


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/users/me"])
async def test_a_good_request_id_is_kept(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"X-Request-ID": "Order_66.part-2"})

    assert response.headers["x-request-id"] == "Order_66.part-2"


@pytest.mark.parametrize("bad", ["", "x" * 129, "a b", "a\tb", "ä", '"', "<script>"])
async def test_any_other_is_replaced(client: httpx.AsyncClient, bad: str) -> None:
    responses = [await client.get("/health", headers=[(b"X-Request-ID", bad.encode())]) for _ in range(2)]

    ids = {response.headers["x-request-id"] for response in responses}
    assert len(ids) == 2
    assert all(len(request_id) == 32 for request_id in ids)


async def test_a_request_is_one_line_in_the_log(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]
) -> None:
    ann = await join(client)
    logs.clear()

    response = await client.get(
        f"/users/{ann.id}?q=hunter2",
        headers=ann.auth | {"X-Request-ID": "abc", "User-Agent": "test", "Referer": "https://example.com/"},
    )

    (line,) = logs
    assert 0 < line.pop("duration_ms") < 60_000
    assert line == {
        "event": "request",
        "log_level": "info",
        "request_id": "abc",
        "method": "GET",
        "path": f"/users/{ann.id}",
        "route": "/users/{user_id}",
        "http_version": "1.1",
        "status": 200,
        "bytes": len(response.content),
        "client": "127.0.0.1",
        "referer": "https://example.com/",
        "user_agent": "test",
    }


async def test_a_path_cannot_forge_a_line(client: httpx.AsyncClient, logs: list[structlog.typing.EventDict]) -> None:
    await client.get("/x%0A%22forged")

    assert logs[-1]["path"] == "/x%0A%22forged"
    assert logs[-1]["route"] is None


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_a_probe_is_not_worth_a_line(
    client: httpx.AsyncClient, logs: list[structlog.typing.EventDict], path: str
) -> None:
    await client.get(path)

    assert [entry["log_level"] for entry in logs] == ["debug"]


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

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "http_version": "1.1",
        "headers": [],
        "client": None,
    }
    await RequestContextMiddleware(half)(scope, receive, send)

    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert [(entry["event"], entry.get("status")) for entry in logs] == [
        ("unhandled exception", None),
        ("request", 200),
    ]


async def test_a_request_that_the_ending_server_cancels_is_answered(
    settings: Settings, logs: list[structlog.typing.EventDict]
) -> None:
    app = create_app(settings)
    has_begun = asyncio.Event()

    @app.get("/forever")
    async def forever() -> None:
        has_begun.set()
        await asyncio.Event().wait()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        request = asyncio.create_task(client.get("/forever"))
        await has_begun.wait()
        request.cancel()
        response = await request

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json() == {"error": "Shutting down", "type": "service_unavailable"}
    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 503)]


async def test_a_response_that_the_ending_server_cancels_stays_unfinished(
    settings: Settings, logs: list[structlog.typing.EventDict]
) -> None:
    app = create_app(settings)
    has_begun = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        has_begun.set()
        await asyncio.Event().wait()

    @app.get("/forever")
    async def forever() -> StreamingResponse:
        return StreamingResponse(chunks())

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        request = asyncio.create_task(client.get("/forever"))
        await has_begun.wait()
        request.cancel()
        with pytest.raises(AssertionError):  # of httpx's transport, about the missing end
            await request

    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 200)]
