"""No route sees a body over the limit, however it is sent."""

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
TOO_LARGE = {"error": "The body is too large", "type": "payload_too_large"}


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    limited = change(settings, max_body_size=LIMIT)
    async with serve(limited) as service:
        yield service


def registration(size: int) -> bytes:
    """A registration that blanks bring to a size in bytes."""
    data = {"email": "ann@example.com", "password": PASSWORD, "full_name": "Ann"}
    return json.dumps(data).encode().ljust(size)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 100):
        yield body[start : start + 100]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_body_up_to_the_limit_is_taken(client: httpx.AsyncClient, streamed: bool) -> None:
    body = registration(LIMIT)

    response = await client.post("/users/", content=in_pieces(body) if streamed else body, headers=JSON)

    assert response.status_code == 201


@pytest.mark.parametrize("streamed", [False, True])
async def test_one_byte_more_is_refused_and_nothing_is_done(client: httpx.AsyncClient, streamed: bool) -> None:
    body = registration(LIMIT + 1)

    response = await client.post("/users/", content=in_pieces(body) if streamed else body, headers=JSON)

    assert (response.status_code, response.json()) == (413, TOO_LARGE)
    assert response.headers["connection"] == "close"
    assert (await log_in(client)).status_code == 401


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", ["/bodiless", "/docs", "/nowhere", "/users/me", "/health"])
async def test_it_is_refused_where_no_route_would_read_it(service: Service, path: str, streamed: bool) -> None:
    @service.app.get("/bodiless")
    async def bodiless() -> None:
        raise AssertionError("the route runs")

    body = b" " * (LIMIT + 1)

    response = await service.client.request("GET", path, content=in_pieces(body) if streamed else body)

    assert (response.status_code, response.json()) == (413, TOO_LARGE)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what comes in, and is not to be called with more than the limit."""
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
    ids=["length", "chunk"],
)
async def test_a_client_that_goes_on_sending_gets_the_whole_answer_and_then_the_end(
    uvicorn: Serve, head: bytes
) -> None:
    async with uvicorn(limited_echo) as address:
        reader, writer = await asyncio.open_connection(*address)

        writer.write(b"POST / HTTP/1.1\r\nHost: test\r\n" + head + b" " * 9_000_000)
        await writer.drain()
        answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == TOO_LARGE


async def test_a_client_that_asks_first_is_not_invited_to_send(uvicorn: Serve) -> None:
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
async def test_the_server_refuses_a_length_that_is_none(uvicorn: Serve, length: str) -> None:
    async with uvicorn(limited_echo) as address:
        reader, writer = await asyncio.open_connection(*address)

        writer.write(f"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_connection_goes_on_after_a_streamed_body(uvicorn: Serve) -> None:
    async with (
        uvicorn(limited_echo) as address,
        httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}") as client,
    ):
        answers = [await client.post("/", content=in_pieces(b"x" * size)) for size in (0, 1, LIMIT)]

    assert [len(answer.content) for answer in answers] == [0, 1, LIMIT]


async def test_a_client_that_leaves_in_the_middle_is_noticed() -> None:
    came: list[Message] = []

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        came.extend([await receive(), await receive()])

    messages: list[Message] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(_: Message) -> None:
        raise AssertionError("nobody is there to be answered")

    scope: Scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    await BodyLimitMiddleware(app, max_size=LIMIT)(scope, receive, send)

    assert [message["type"] for message in came] == ["http.disconnect", "http.disconnect"]
