"""WebSockets on gunicorn, the production server."""

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gunicorn_process import Gunicorn, Start
from processes import TIMEOUT, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from app import PREFIX
from tests.conftest import ROOT
from tests.pages import command
from tests.people import PASSWORD


@pytest.fixture
def server(start_service: Start) -> Gunicorn:
    path = f"{ROOT}:{Path(__file__).parent}"  # without `tests`, because importing it removes settings
    return start_service("app_with_websocket:app", PYTHONPATH=path, ALLOWED_HOSTS="127.0.0.1")


@pytest.fixture
def token(server: Gunicorn) -> str:
    """The access token of a newly registered user."""
    with httpx.Client(base_url=server.url + PREFIX, timeout=TIMEOUT) as client:
        credentials = {"email": "ann@example.com", "password": PASSWORD}
        client.post("/users/", json=credentials | {"full_name": "Ann"}).raise_for_status()
        return str(client.post("/auth/login", json=credentials).raise_for_status().json()["access_token"])


@pytest.fixture
def chat(server: Gunicorn, token: str) -> Iterator[ClientConnection]:
    """A WebSocket that the user has opened."""
    url = f"{server.url.replace('http', 'ws')}{PREFIX}/chat-in-a-test/1"
    with connect(url, additional_headers={"Authorization": f"Bearer {token}", "X-Request-ID": "my-chat"}) as client:
        yield client


def test_documented_client_receives_an_answer(server: Gunicorn, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{server.url.replace('http', 'ws')}{PREFIX}/chat-in-a-test"

    exec(command("websocket-client").replace("ws://127.0.0.1:8000/chat", url), {"token": token})  # noqa: S102  our own

    assert capsys.readouterr().out.endswith(" in 1: hello\n")


def wait_for_close(client: ClientConnection) -> int | None:
    """Wait until the server closes the connection, and return its close code."""
    with pytest.raises(ConnectionClosed):
        client.recv(TIMEOUT)
    return client.close_code


def wait_for_lines(server: Gunicorn) -> list[dict[str, Any]]:
    """Wait for the WebSocket's line in the access log, and return all log lines with the same request id."""

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.log.splitlines() if "my-chat" in line]

    until(lambda: any(line["event"] == "websocket" for line in lines()), "the WebSocket is logged")
    return lines()


def test_user_sends_and_receives_messages(server: Gunicorn, chat: ClientConnection) -> None:
    chat.send("hello")
    assert chat.recv(TIMEOUT) == "1 in 1: hello"
    chat.close(4001)

    (line,) = wait_for_lines(server)
    assert (line["status"], line["close_code"], line["user_id"]) == (101, 4001, 1)


def test_unhandled_exception_closes_with_1011_and_is_logged_once(server: Gunicorn, chat: ClientConnection) -> None:
    chat.send("crash")

    assert wait_for_close(chat) == 1011
    until(lambda: '"error"' in server.log, "the exception is logged")
    assert {line["level"]: line.get("close_code") for line in wait_for_lines(server)} == {"error": None, "info": 1011}
    assert server.log.count("my-chat") == 2


def test_sigterm_closes_with_1012(server: Gunicorn, chat: ClientConnection) -> None:
    chat.send("hello")
    chat.recv(TIMEOUT)
    server.send(signal.SIGTERM)

    assert wait_for_close(chat) == 1012
    (line,) = wait_for_lines(server)
    assert line["close_code"] == 1012


@pytest.mark.parametrize(
    ("path", "host", "status", "error"),
    [
        ("/chat-in-a-test/1", "127.0.0.1", 401, "authentication_error"),
        ("/chat-in-a-test/1", "evil.example", 400, "validation_error"),
        ("/nowhere", "127.0.0.1", 404, "not_found"),
        ("/closed-in-a-test", "127.0.0.1", 403, "permission_error"),
    ],
)
def test_rejected_handshake_gets_an_error_of_the_api(
    server: Gunicorn, path: str, host: str, status: int, error: str
) -> None:
    tcp = socket.create_connection(server.address, TIMEOUT)
    with pytest.raises(InvalidStatus) as rejected, connect(f"ws://{host}{PREFIX}{path}", sock=tcp):
        pass

    response = rejected.value.response
    assert response.status_code == status
    assert json.loads(response.body or b"")["type"] == error
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Request-ID"]
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert server.log.count('"event": "websocket"') == 1
    assert '"level": "error"' not in server.log
