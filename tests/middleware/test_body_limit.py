"""MAX_BODY_SIZE: larger bodies are rejected before any route runs."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from app.middleware.body_limit import BodyLimitMiddleware
from app.settings import Settings
from tests.conftest import Service, change, serve
from tests.middleware.conftest import Serve
from tests.people import PASSWORD, log_in

LIMIT = 1000
JSON = {"Content-Type": "application/json"}
PAYLOAD_TOO_LARGE = {"error": "The body is too large", "type": "payload_too_large"}


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    limited = change(settings, max_body_size=LIMIT)
    async with serve(limited) as service:
        yield service


def registration(size: int) -> bytes:
    """Return the body of a registration, padded with spaces to a size in bytes."""
    data = {"email": "ann@example.com", "password": PASSWORD, "full_name": "Ann"}
    return json.dumps(data).encode().ljust(size)


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 100):
        yield body[start : start + 100]


@pytest.mark.parametrize("streamed", [False, True])
async def test_body_at_limit_is_accepted(client: httpx.AsyncClient, streamed: bool) -> None:
    body = registration(LIMIT)

    response = await client.post("/users/", content=in_chunks(body) if streamed else body, headers=JSON)

    assert response.status_code == 201


@pytest.mark.parametrize("streamed", [False, True])
async def test_body_over_limit_returns_413_and_has_no_effect(client: httpx.AsyncClient, streamed: bool) -> None:
    body = registration(LIMIT + 1)

    response = await client.post("/users/", content=in_chunks(body) if streamed else body, headers=JSON)

    assert (response.status_code, response.json()) == (413, PAYLOAD_TOO_LARGE)
    assert response.headers["connection"] == "close"
    assert (await log_in(client)).status_code == 401


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", ["/bodiless", "/docs", "/nowhere", "/users/me", "/health"])
async def test_body_over_limit_returns_413_on_routes_that_read_no_body(
    service: Service, path: str, streamed: bool
) -> None:
    @service.app.get("/bodiless")
    async def bodiless() -> None:
        raise AssertionError("the route must not run")

    body = b" " * (LIMIT + 1)

    response = await service.client.request("GET", path, content=in_chunks(body) if streamed else body)

    assert (response.status_code, response.json()) == (413, PAYLOAD_TOO_LARGE)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the request's body. It must not be called with a body over the limit."""
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    assert len(body) <= LIMIT
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


limited_echo = BodyLimitMiddleware(echo, max_size=LIMIT)


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 10000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n989680\r\n"],
    ids=["content length", "chunked"],
)
async def test_client_still_sending_receives_complete_413(uvicorn: Serve, head: bytes) -> None:
    async with uvicorn(limited_echo) as address:
        reader, writer = await asyncio.open_connection(*address)

        writer.write(b"POST / HTTP/1.1\r\nHost: test\r\n" + head + b" " * 9_000_000)
        await writer.drain()
        response = await reader.read()
        writer.close()

    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in response
    assert json.loads(response.partition(b"\r\n\r\n")[2]) == PAYLOAD_TOO_LARGE


async def test_expect_100_continue_over_limit_returns_413_without_continue(uvicorn: Serve) -> None:
    async with uvicorn(limited_echo) as address:
        reader, writer = await asyncio.open_connection(*address)

        writer.write(b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n")
        status = await reader.readline()
        writer.close()

    assert status.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "length",
    ["abc", "-1", "+1", "1_0", "1 1", "", "99999999999999999999999", "1\r\nContent-Length: 2"],
)
async def test_server_rejects_invalid_content_length(uvicorn: Serve, length: str) -> None:
    async with uvicorn(limited_echo) as address:
        reader, writer = await asyncio.open_connection(*address)

        writer.write(f"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode())
        response = await reader.read()
        writer.close()

    assert response.startswith(b"HTTP/1.1 400 ")


async def test_connection_is_reused_after_chunked_body(uvicorn: Serve) -> None:
    async with (
        uvicorn(limited_echo) as address,
        httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}") as client,
    ):
        responses = [await client.post("/", content=in_chunks(b"x" * size)) for size in (0, 1, LIMIT)]

    assert [len(response.content) for response in responses] == [0, 1, LIMIT]


async def test_application_sees_disconnect_during_chunked_body() -> None:
    received: list[Message] = []

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        received.extend([await receive(), await receive()])

    messages: list[Message] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(_: Message) -> None:
        raise AssertionError("the client has disconnected")

    scope: Scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    await BodyLimitMiddleware(app, max_size=LIMIT)(scope, receive, send)

    assert [message["type"] for message in received] == ["http.disconnect", "http.disconnect"]
