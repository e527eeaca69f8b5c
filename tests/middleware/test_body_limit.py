"""MAX_BODY_SIZE and MAX_TOTAL_BODY_SIZE: larger bodies are rejected before a route runs."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message, Receive, Scope, Send

from app import PREFIX
from app.dependencies import BodyStream
from app.errors import add_error_handlers
from app.middleware.body_limit import SMALL_SIZE, BodyLimitMiddleware
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
    """Return the JSON body of a registration, padded with spaces to `size` bytes."""
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


@pytest.mark.parametrize("path", ["/bodiless", "/docs", "/nowhere", "/users/me", "/health"])
async def test_content_length_over_limit_returns_413_on_routes_that_read_no_body(service: Service, path: str) -> None:
    @service.app.get(PREFIX + "/bodiless")
    async def bodiless() -> None:
        raise AssertionError("the route must not run")

    response = await service.client.request("GET", path, content=b" " * (LIMIT + 1))

    assert (response.status_code, response.json()) == (413, PAYLOAD_TOO_LARGE)


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("POST", "/health"), ("POST", "/nowhere")])
async def test_route_without_body_responds_without_reading_one(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    was_read = False

    async def endless() -> AsyncIterator[bytes]:
        nonlocal was_read
        was_read = True
        while True:
            yield b" " * 100

    response = await client.request(method, path, content=endless())

    assert response.status_code in {200, 404, 405}
    assert not was_read


async def test_route_can_have_its_own_limit(service: Service) -> None:
    @service.app.post(PREFIX + "/uploads-in-a-test/{name}", max_body_size=10 * LIMIT)
    async def upload(name: str, request: Request) -> tuple[str, int]:
        return name, len(await request.body())

    accepted, rejected, elsewhere = [
        await service.client.post(path, content=in_chunks(b"x" * size))
        for path, size in (
            ("/uploads-in-a-test/a", 10 * LIMIT),
            ("/uploads-in-a-test/a", 10 * LIMIT + 1),
            ("/users/", LIMIT + 1),
        )
    ]

    assert (accepted.status_code, accepted.json()) == (200, ["a", 10 * LIMIT])
    assert (rejected.status_code, rejected.json()) == (413, PAYLOAD_TOO_LARGE)
    assert elsewhere.status_code == 413


async def test_route_without_its_own_limit_does_not_use_that_of_a_later_route(service: Service) -> None:
    async def upload(request: Request) -> int:
        return len(await request.body())

    service.app.post(PREFIX + "/uploads-in-a-test/import")(upload)
    service.app.post(PREFIX + "/uploads-in-a-test/{name}", max_body_size=10 * LIMIT)(upload)

    response = await service.client.post("/uploads-in-a-test/import", content=in_chunks(b"x" * (LIMIT + 1)))

    assert (response.status_code, response.json()) == (413, PAYLOAD_TOO_LARGE)


async def test_bodies_beyond_total_return_503_until_others_are_finished(settings: Settings) -> None:
    async with serve(change(settings, max_body_size=100_000, max_total_body_size=150_000)) as service:
        may_finish = asyncio.Event()
        reads = asyncio.Semaphore(0)

        @service.app.post(PREFIX + "/slow")
        async def slow(request: Request) -> int:
            size = len(await request.body())
            reads.release()
            await may_finish.wait()
            return size

        async def post(size: int) -> httpx.Response:
            return await service.client.post("/slow", content=b"x" * size)

        first = asyncio.create_task(post(90_000))
        await reads.acquire()
        second = await post(90_000)
        third = asyncio.create_task(post(50_000))
        await reads.acquire()
        may_finish.set()
        responses = [await first, second, await third, await post(90_000)]

    assert [response.status_code for response in responses] == [200, 503, 200, 200]
    assert second.headers["retry-after"] == "1"


async def test_streamed_bodies_do_not_count_towards_the_total(settings: Settings) -> None:
    """Streamed bodies are not held in memory, so they must not cause requests with JSON bodies to be rejected."""
    async with serve(change(settings, max_total_body_size=50_000)) as service:
        reads = asyncio.Semaphore(0)
        may_finish = asyncio.Event()

        mounted = FastAPI(openapi_url=None)

        @mounted.put("/uploads-in-a-test", max_body_size=1_000_000)
        @service.app.put(PREFIX + "/uploads-in-a-test", max_body_size=1_000_000)
        async def upload(body: BodyStream) -> int:
            size = sum([len(chunk) async for chunk in body])
            reads.release()
            await may_finish.wait()
            return size

        service.app.mount(PREFIX + "/mounted-in-a-test", mounted)

        @service.app.post(PREFIX + "/json")
        async def count(data: list[int]) -> int:
            return len(data)

        uploads = [
            asyncio.create_task(service.client.put(path, content=in_chunks(b"x" * size)))
            for path, size in (
                ("/uploads-in-a-test", 100_000),
                ("/mounted-in-a-test/uploads-in-a-test", 200_000),
                ("/uploads-in-a-test", 1_000_000),
            )
        ]
        async with asyncio.timeout(60):
            for _ in uploads:
                await reads.acquire()
        meanwhile = await service.client.post("/json", content=b"[1]".ljust(SMALL_SIZE + 1), headers=JSON)
        may_finish.set()
        accepted = [await response for response in uploads]
        too_large = await service.client.put("/uploads-in-a-test", content=in_chunks(b"x" * 1_000_001))

    assert [(response.status_code, response.json()) for response in accepted] == [
        (200, 100_000),
        (200, 200_000),
        (200, 1_000_000),
    ]
    assert meanwhile.status_code == 200
    assert (too_large.status_code, too_large.json()) == (413, PAYLOAD_TOO_LARGE)


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Type", "application/json")],
        [("Content-Type", "application/JSON")],
        [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
    ],
    ids=["lower case", "upper case", "repeated"],
)
async def test_parsed_json_counts_towards_the_total(settings: Settings, headers: list[tuple[str, str]]) -> None:
    """JSON takes far more memory once it is parsed. If only the text counted, a worker could use hundreds of MiB."""
    async with serve(change(settings, max_body_size=100_000, max_total_body_size=200_000)) as service:
        may_finish = asyncio.Event()
        is_parsed = asyncio.Event()

        @service.app.post(PREFIX + "/slow")
        async def slow(data: list[list[int]]) -> None:
            if data:
                is_parsed.set()
                await may_finish.wait()

        async def post(content: str) -> httpx.Response:
            return await service.client.post("/slow", content=content, headers=headers)

        first = asyncio.create_task(post(f"[{'[],' * 10_000}[]]"))
        await is_parsed.wait()
        large, small = await post("[]".ljust(SMALL_SIZE + 1)), await post("[]".ljust(SMALL_SIZE))
        may_finish.set()
        responses = [await first, large, small, await post("[]".ljust(SMALL_SIZE + 1))]

    assert [response.status_code for response in responses] == [200, 503, 200, 200]


def create_limited_echo() -> FastAPI:
    app = FastAPI(openapi_url=None)
    add_error_handlers(app)
    app.mount("/", echo)
    app.add_middleware(BodyLimitMiddleware, routes=app.routes, max_size=LIMIT, max_total=10 * LIMIT)
    return app


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the request's body. Fail if the middleware has passed on a body over the limit."""
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    assert len(body) <= LIMIT
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


limited_echo = create_limited_echo()


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

    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
    await BodyLimitMiddleware(app, routes=[], max_size=LIMIT, max_total=LIMIT)(scope, receive, send)

    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]
