"""Authentication, allowed hosts, limits, errors and log lines are the same for WebSocket routes as for other routes."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI

from app import PREFIX
from app.api import add_routers
from app.settings import Settings
from tests.conftest import Service, change, serve
from tests.pages import command
from tests.people import Person, sign_up
from tests.server.app_with_websocket import add_websockets
from tests.websocket_client import WebSocketClient, open_websocket

CHAT = f"{PREFIX}/chat-in-a-test/1"


@pytest.fixture
async def service(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    def add_all_routers(app: FastAPI) -> None:
        add_routers(app)
        add_websockets(app)

    monkeypatch.setattr("app.main.add_routers", add_all_routers)
    async with serve(change(settings, allowed_hosts="test", rate_limit_login="3/minute")) as service:
        yield service


@pytest.fixture
async def ann(client: httpx.AsyncClient) -> Person:
    return await sign_up(client)


async def rejection(client: WebSocketClient) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return the status, headers and body of the response to a rejected handshake."""
    start, body = await client.receive(), await client.receive()
    assert (start["type"], body["type"]) == ("websocket.http.response.start", "websocket.http.response.body")
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, json.loads(body["body"])


def lines(logs: list[structlog.typing.EventDict]) -> list[structlog.typing.EventDict]:
    """Return the log entries about WebSockets."""
    return [entry for entry in logs if entry["event"] == "websocket"]


async def test_route_knows_the_current_user(service: Service, ann: Person) -> None:
    async with open_websocket(service, CHAT, ann.auth) as client:
        accepted = await client.receive()
        client.send("hello")

        assert (await client.receive())["text"] == f"{ann.id} in 1: hello"
    headers = dict(accepted["headers"])
    assert accepted["type"] == "websocket.accept"
    assert headers[b"ratelimit"].startswith(b'"login";r=1;')  # Ann's login counts towards this limit
    assert headers[b"x-request-id"]


async def test_documented_route_sends_messages_back_and_holds_no_connection(service: Service, ann: Person) -> None:
    documented: dict[str, Any] = {}
    exec(command("websocket-route"), documented)  # noqa: S102  the code is from our documentation
    service.app.include_router(documented["router"], prefix="/documented-in-a-test")
    async with open_websocket(service, "/documented-in-a-test/chat/1", ann.auth) as client:
        accepted = await client.receive()
        client.send("hello")
        answer = await client.receive()
        held = service.state["engine"].pool.status()

    assert accepted["type"] == "websocket.accept"
    assert answer == {"type": "websocket.send", "text": "Ann: hello"}
    assert "Current Checked out connections: 0" in held


@pytest.mark.parametrize(
    ("path", "headers", "status", "error"),
    [
        ("/chat-in-a-test/1", {}, 401, "authentication_error"),
        ("/chat-in-a-test/1", {"Authorization": "Bearer x"}, 401, "authentication_error"),
        ("/chat-in-a-test/1", {"Host": "evil.example"}, 400, "validation_error"),
        ("/closed-in-a-test", {}, 403, "permission_error"),
        ("/nowhere", {}, 404, "not_found"),
        ("/users/me", {}, 404, "not_found"),
    ],
)
async def test_rejected_handshake_gets_an_error_of_the_api(  # noqa: PLR0913, PLR0917  one per column above
    service: Service,
    logs: list[structlog.typing.EventDict],
    path: str,
    headers: dict[str, str],
    status: int,
    error: str,
) -> None:
    async with open_websocket(service, PREFIX + path, headers) as client:
        response = await rejection(client)

    assert (response[0], response[2]["type"]) == (status, error)
    assert response[1]["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response[1]["x-request-id"]
    assert client.sent.empty()
    (line,) = lines(logs)
    assert (line["log_level"], line["status"], line["path"]) == ("info", status, PREFIX + path)


async def test_invalid_parameter_is_described(service: Service, ann: Person) -> None:
    async with open_websocket(service, f"{PREFIX}/chat-in-a-test/x", ann.auth) as client:
        status, _, body = await rejection(client)

    assert status == 422
    assert [detail["field"] for detail in body["details"]] == ["room"]


async def test_handshakes_beyond_the_limit_of_the_route_return_429(service: Service) -> None:
    statuses = []
    for _ in range(4):
        async with open_websocket(service, CHAT) as client:
            status, headers, _ = await rejection(client)
            statuses.append(status)

    assert statuses == [401, 401, 401, 429]
    assert headers["ratelimit-policy"] == '"login";q=3;w=60'
    assert headers["retry-after"]


async def test_other_routes_for_websockets_share_the_default_limit(service: Service) -> None:
    async with open_websocket(service, f"{PREFIX}/closed-in-a-test") as client:
        _, headers, _ = await rejection(client)

    assert headers["ratelimit-policy"].startswith('"default";')


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [("secret", 1008, "Forbidden"), ("unusual status", 1008, "Status 499"), ("outage", 1013, "Service Unavailable")],
)
async def test_error_of_an_accepted_websocket_closes_it(
    service: Service, ann: Person, text: str, code: int, reason: str
) -> None:
    async with open_websocket(service, CHAT, ann.auth) as client:
        await client.receive()
        client.send(text)

        assert await client.receive() == {"type": "websocket.close", "code": code, "reason": reason}
    assert client.sent.empty()


@pytest.mark.parametrize(
    ("text", "close"),
    [("crash", {"code": 1011, "reason": "Internal Server Error"}), ("crash after close", {"code": 1000, "reason": ""})],
)
async def test_unhandled_exception_closes_an_accepted_websocket_and_is_raised_for_the_server(
    service: Service, ann: Person, text: str, close: dict[str, object]
) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_websocket(service, CHAT, ann.auth))
        await client.receive()
        client.send(text)

        assert await client.receive() == {"type": "websocket.close"} | close
        with pytest.raises(RuntimeError, match="boom"):
            await stack.aclose()
    assert client.sent.empty()


async def test_unhandled_exception_before_the_acceptance_returns_500(service: Service) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_websocket(service, f"{PREFIX}/broken-in-a-test"))

        status, _, body = await rejection(client)

        assert (status, body["type"]) == (500, "internal_error")
        with pytest.raises(RuntimeError, match="boom"):
            await stack.aclose()


async def test_websocket_cancelled_at_shutdown_is_closed(service: Service, ann: Person) -> None:
    async with open_websocket(service, CHAT, ann.auth) as client:
        await client.receive()
        client.task.cancel()

        assert (await client.receive())["code"] == 1013


@pytest.mark.parametrize(("text", "code"), [("hello", 1001), ("leave", 4000), ("secret", 1008)])
async def test_one_line_is_logged_when_a_websocket_ends(
    service: Service, ann: Person, logs: list[structlog.typing.EventDict], text: str, code: int
) -> None:
    async with open_websocket(service, CHAT, ann.auth) as client:
        await client.receive()
        client.send(text)
        answer = await client.receive()

    (line,) = lines(logs)
    assert line["status"] == 101
    assert line["close_code"] == code
    assert line["bytes"] == len(answer.get("text", ""))
    assert line["route"] == "/chat-in-a-test/{room}"
    assert line["user_id"] == ann.id
    assert line["duration_ms"] > 0
    assert "hidden" not in str(logs)
