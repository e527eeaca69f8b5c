"""WebSocket connections are opened, limited, and closed gracefully when the worker stops."""

import fcntl
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from certificates import TLS
from gunicorn_process import Gunicorn, Start
from hitless import Limits
from hitless.server import LIFESPAN_SECONDS
from processes import TIMEOUT, memory, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

LIMITS = Limits()
# The example in RFC 6455, section 1.2.
HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
TEXT, CONTINUATION, PING, FINAL, MASKED = 1, 0, 9, 0x80, 0x80


@pytest.fixture(scope="module")
def server(start_for_module: Start) -> Iterator[Gunicorn]:
    server = start_for_module("--log-level=debug", WEBSOCKET_IDLE_SECONDS="2", UNREAD_SECONDS="2")
    yield server
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.log
    assert "[ERROR]" not in server.log


def open_websocket(server: Gunicorn, path: str = "/echo") -> ClientConnection:
    return connect(f"{server.url.replace('http', 'ws')}{path}", open_timeout=TIMEOUT, close_timeout=TIMEOUT)


def ask(client: ClientConnection, message: str | bytes) -> str:
    """Send a message, and return the reply with the worker's process id removed."""
    client.send(message)
    return str(client.recv(TIMEOUT)).partition(" ")[2]


def close_code(client: ClientConnection) -> int | None:
    """Read until the server closes the connection, and return the close code."""
    try:
        while True:
            client.recv(TIMEOUT)
    except ConnectionClosed:
        return client.close_code


@contextmanager
def open_raw(server: Gunicorn, head: bytes = HANDSHAKE) -> Iterator[socket.socket]:
    """Open a WebSocket connection on a plain socket, to send frames that no client library would send."""
    with socket.socket() as client:
        client.settimeout(TIMEOUT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.address)
        client.sendall(head + b"\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 101 ")
        yield client


def frame(first_byte: int, payload: bytes = b"") -> bytes:
    """Return a masked WebSocket frame with a payload of up to 65,535 bytes. The mask 0 leaves the payload unchanged."""
    length = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + struct.pack("!H", len(payload))
    return bytes([first_byte, length[0] | MASKED]) + length[1:] + bytes(4) + payload


def request_pid(client: socket.socket) -> None:
    """Send an HTTP request, read the response, and keep the connection open."""
    client.sendall(b"GET /pid HTTP/1.1\r\nHost: test\r\n\r\n")
    response = b""
    while not response.endswith(b"0\r\n\r\n"):
        response += (part := client.recv(1000))
        assert part
    assert response.startswith(b"HTTP/1.1 200 ")


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    data = b""
    while part := client.recv(65536):
        data += part
    return data


def unread_bytes(client: socket.socket) -> int:
    """Return the number of bytes that the client has sent but the server has not read (Linux only)."""
    return int(struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))[0])


def flood(client: socket.socket, data: bytes, size: int) -> None:
    """Send data repeatedly, without reading, until `size` bytes are sent or the server stops reading."""
    client.settimeout(1)
    try:
        for _ in range(size // len(data)):
            client.sendall(data)
    except TimeoutError:  # the server has stopped reading
        pass


# Handshake -----------------------------------------------------------------------------------------------------------


def test_messages_are_sent_and_received(server: Gunicorn) -> None:
    with open_websocket(server) as client:
        assert ask(client, "hello") == "hello"
        assert ask(client, b"\x00\xff") == "2"


def test_messages_over_tls_are_sent_and_received(start: Start, tls: TLS) -> None:
    server = start(f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}")

    with connect(server.url.replace("http", "wss"), ssl=tls.client) as client:
        assert ask(client, "x" * 50_000) == "x" * 50_000
        server.send(signal.SIGTERM)
        assert close_code(client) == 1012
    assert server.wait() == 0


def test_handshake_after_a_request_on_the_same_connection_is_accepted(server: Gunicorn) -> None:
    with socket.create_connection(server.address, TIMEOUT) as client:
        request_pid(client)
        client.sendall(HANDSHAKE + b"\r\n")

        assert client.recv(1000).startswith(b"HTTP/1.1 101 ")


def test_rejected_handshake_gets_the_response_of_the_application(server: Gunicorn) -> None:
    with pytest.raises(InvalidStatus) as rejected, open_websocket(server, "/rejected"):
        pass

    assert (rejected.value.response.status_code, rejected.value.response.body) == (418, b"no")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(HANDSHAKE.replace(b"GET", b"POST"), id="method"),
        pytest.param(HANDSHAKE.replace(b"13", b"12"), id="version"),
        pytest.param(HANDSHAKE.replace(b"dGhl", b""), id="key"),
        pytest.param(HANDSHAKE.replace(b"Sec-WebSocket-Key", b"Key"), id="no key"),
        pytest.param(HANDSHAKE + b"Long: " + b"a" * 9000 + b"\r\n", id="line over 8 KiB"),
    ],
)
def test_invalid_handshake_is_answered_as_an_ordinary_request(server: Gunicorn, head: bytes) -> None:
    with socket.create_connection(server.address, TIMEOUT) as client:
        client.sendall(head + b"\r\n")

        response = read_all(client)

    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in response


def test_message_before_the_end_of_the_handshake_closes_the_connection(server: Gunicorn) -> None:
    with socket.create_connection(server.address, TIMEOUT) as client:
        client.sendall(HANDSHAKE.replace(b"/echo", b"/handshake") + b"\r\n")
        server.wait_for_log("a handshake is waiting")
        client.sendall(b"not masked")

        with suppress(ConnectionResetError):
            assert client.recv(1000) == b""


def test_handshake_in_the_pipeline_does_not_mix_with_an_earlier_response(server: Gunicorn) -> None:
    with socket.create_connection(server.address, TIMEOUT) as client:
        client.sendall(b"GET /sleep/1 HTTP/1.1\r\nHost: test\r\n\r\n" + HANDSHAKE + b"\r\n")

        response = read_all(client)

    assert response.count(b"HTTP/1.1 ") == response.count(b"HTTP/1.1 200 OK\r\n") == 1


def test_log_contains_neither_the_query_nor_the_headers_of_a_handshake(server: Gunicorn) -> None:
    with connect(f"{server.url.replace('http', 'ws')}/echo?token=secret", additional_headers={"A": "secret"}) as client:
        assert ask(client, "hello") == "hello"

    assert "secret" not in server.log


def test_upgrade_without_the_extra_is_answered_as_an_ordinary_request(start: Start, tmp_path: Path) -> None:
    (tmp_path / "websockets.py").write_text("raise ImportError\n")
    path = f"{tmp_path}:{Path(__file__).parent}"
    server = start(PYTHONPATH=path)

    with socket.create_connection(server.address, TIMEOUT) as client:
        client.sendall(HANDSHAKE + b"\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 200 OK\r\n")
    server.send(signal.SIGTERM)
    assert server.wait() == 0


# Limits --------------------------------------------------------------------------------------------------------------


def test_message_of_the_maximum_size_is_accepted(server: Gunicorn) -> None:
    with open_websocket(server) as client:
        assert ask(client, b"x" * LIMITS.websocket_message_size) == str(LIMITS.websocket_message_size)


def test_fragmented_message_is_received_as_one(server: Gunicorn) -> None:
    with open_websocket(server) as client:
        client.send(["one ", "message"])

        assert str(client.recv(TIMEOUT)).endswith(" one message")


@pytest.mark.parametrize("fragments", [1, 3])
def test_message_too_large_closes_with_1009(server: Gunicorn, fragments: int) -> None:
    size = LIMITS.websocket_message_size // fragments + 1
    with open_websocket(server) as client:
        with suppress(ConnectionClosed):  # the server may close the connection before all data is sent
            client.send([b"x" * size] * fragments)

        assert close_code(client) == 1009


def test_client_that_is_still_sending_sees_the_close_code(server: Gunicorn) -> None:
    """Closing a connection while received data is unread would reset it. The client might never see the close frame."""
    with open_raw(server) as client:
        client.sendall(frame(FINAL | TEXT, b"\xff") + frame(FINAL | TEXT, b"x" * 60_000) * 20)

        assert read_all(client).endswith(struct.pack("!H", 1007))


def test_frame_without_a_mask_closes_with_1002(server: Gunicorn) -> None:
    with open_raw(server) as client:
        client.sendall(b"\x81\x01a")

        assert struct.pack("!H", 1002) in read_all(client)


def test_short_messages_beyond_the_queue_stay_in_the_network_buffers(server: Gunicorn) -> None:
    pid = int(server.get("/pid").text)
    before = memory(pid)
    with open_raw(server, HANDSHAKE.replace(b"/echo", b"/busy")) as client:
        flood(client, frame(FINAL | TEXT) * 1000, 20 * 2**20)  # if queued, these would use 30 times as much memory

        assert memory(pid) - before < 4 * 2**20


@pytest.mark.parametrize(
    ("flooded", "size"),
    [(frame(CONTINUATION), 2**20), (frame(FINAL | PING, b"x" * 125), 10 * 2**20)],
    ids=["fragments", "pings"],
)
def test_flood_of_frames_takes_no_memory(start: Start, flooded: bytes, size: int) -> None:
    server = start()
    pid = int(server.get("/pid").text)
    before = memory(pid)
    with open_raw(server) as client:
        client.sendall(frame(TEXT))

        flood(client, flooded * 100, size)

        until(lambda: unread_bytes(client) == 0, "the server has read everything")
        assert memory(pid) - before < 4 * 2**20


def test_client_that_answers_no_ping_is_disconnected(server: Gunicorn) -> None:
    with open_raw(server) as client:
        data = read_all(client)

    assert data[0] == FINAL | PING
    assert struct.pack("!H", 1011) in data


def test_idle_client_that_answers_pings_stays_connected(server: Gunicorn) -> None:
    with open_websocket(server) as client:
        time.sleep(2 * 2)  # twice the time after which a client without pongs is disconnected

        assert ask(client, "hello") == "hello"


def test_client_of_a_slow_application_is_not_disconnected(server: Gunicorn) -> None:
    """While messages wait for the application, the server reads no pongs, so it must not count them as missing."""
    with open_websocket(server, "/busy") as client:
        client.send("one")
        client.send("two")

        assert [str(client.recv(TIMEOUT)).split()[1] for _ in range(2)] == ["one", "two"]


def test_closed_connections_count_for_max_requests(start: Start) -> None:
    server = start("--max-requests=3")
    with open_websocket(server) as client:
        for _ in range(3):
            with open_websocket(server):
                pass

        assert close_code(client) == 1012
    server.wait_for_log("Application startup complete.", times=2)


def test_connections_count_for_the_balance_of_workers(server: Gunicorn) -> None:
    with open_websocket(server), open_websocket(server):
        until(lambda: server.get("/connections").json()[0] >= 3, "three connections are counted")


# Shutdown ------------------------------------------------------------------------------------------------------------


def test_idle_connection_is_closed_with_1012(start: Start) -> None:
    server = start()
    with open_websocket(server) as client:
        ask(client, "hello")
        server.send(signal.SIGTERM)

        assert close_code(client) == 1012
        assert server.wait() == 0
    server.wait_for_log("a WebSocket has ended with code 1012")


def test_connection_whose_application_only_sends_is_closed_with_1012(start: Start) -> None:
    server = start()
    with open_websocket(server, "/push") as client:
        assert client.recv(TIMEOUT) == "news"
        server.send(signal.SIGTERM)

        assert close_code(client) == 1012
        assert server.wait() == 0
    assert "exceed the grace" not in server.log
    assert "Traceback" not in server.log


def test_message_that_is_being_handled_and_messages_that_wait_are_answered_before_1012(start: Start) -> None:
    server = start()
    with open_websocket(server) as client:
        client.send("sleep 2")
        server.wait_for_log("a message is being handled")
        client.send("later")
        server.send(signal.SIGTERM)

        answers = [str(client.recv(TIMEOUT)).partition(" ")[2] for _ in range(2)]

        assert answers == ["sleep 2", "later"]
        assert close_code(client) == 1012
    assert server.wait() == 0


def test_message_that_arrives_while_the_worker_leaves_is_not_handled(start: Start, tmp_path: Path) -> None:
    server = start(HANDLED_FILE=str(tmp_path / "handled"))
    with open_websocket(server) as client:
        client.send("sleep 3")
        server.wait_for_log("a message is being handled")
        server.send(signal.SIGTERM)
        time.sleep(2)  # longer than a stopping worker keeps connections open
        client.send("too late")

        assert str(client.recv(TIMEOUT)).endswith("sleep 3")
        assert close_code(client) == 1012
    assert server.wait() == 0
    assert (tmp_path / "handled").read_text() == "sleep 3\n"


def test_handshake_in_progress_is_finished_and_closed_with_1012(start: Start, background: ThreadPoolExecutor) -> None:
    server = start()
    opening = background.submit(open_websocket, server, "/handshake")
    server.wait_for_log("a handshake is waiting")
    server.send(signal.SIGTERM)

    with opening.result() as client:
        assert "connection: close" not in str(client.response and client.response.headers).lower()
        assert close_code(client) == 1012
    assert server.wait() == 0


def test_handshake_while_the_worker_leaves_is_accepted_and_closed_with_1012(start: Start) -> None:
    server = start(LAST_REQUESTS_SECONDS="5")
    with (
        httpx.Client(base_url=server.url, timeout=TIMEOUT) as idle,
        closing(socket.create_connection(server.address)) as client,
    ):
        idle.get("/pid")
        request_pid(client)
        server.send(signal.SIGTERM)
        until(lambda: idle.get("/pid").headers.get("connection") == "close", "the worker leaves")
        client.sendall(HANDSHAKE + b"\r\n")

        response = read_all(client)

    head, _, frames = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"connection: close" not in head.lower()
    assert frames.endswith(struct.pack("!H", 1012))
    assert server.wait() == 0


def test_message_that_takes_longer_than_the_grace_is_cancelled(start: Start) -> None:
    server = start(f"--graceful-timeout={LIFESPAN_SECONDS + 2}")
    with open_websocket(server) as client:
        client.send("sleep 3600")
        server.wait_for_log("a message is being handled")
        server.send(signal.SIGTERM)

        assert close_code(client) == 1012
    assert server.wait() == 0
    assert "1 requests exceed the grace period of 2 s and are cancelled" in server.log
    assert "has shut down its lifespan" in server.log


def test_client_that_does_not_answer_the_close_frame_does_not_delay_the_shutdown(start: Start) -> None:
    server = start()
    with open_raw(server) as client:
        server.send(signal.SIGTERM)

        assert server.wait() == 0
        assert read_all(client).endswith(struct.pack("!H", 1012))
    assert "exceed the grace" not in server.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_signal_to_stop_at_once_does_not_wait_for_websockets(number: signal.Signals, start: Start) -> None:
    server = start("--graceful-timeout=3600")
    with open_websocket(server) as client:
        client.send("sleep 3600")
        server.wait_for_log("a message is being handled")

        server.send(number)

        assert close_code(client) == 1006  # no close frame was received
        assert server.wait() == 0
