"""Requests that are malformed, too large or too slow are rejected before they reach the application."""

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from certificates import TLS
from gunicorn_process import Gunicorn, Start
from hitless import Limits
from processes import TIMEOUT, memory, until

GET = b"GET /pid HTTP/1.1\r\nHost: test\r\n"
POST = b"POST /read HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"0\r\n\r\nDELETE /pid HTTP/1.1\r\nHost: test\r\n\r\n"
SLEEP = b"GET /sleep/4 HTTP/1.1\r\nHost: test\r\n\r\n"  # sleeps for twice the time in which a request must arrive

SHORT_LIMITS = {"REQUEST_SECONDS": "2", "UNREAD_SECONDS": "2"}
HEAD_SIZE = Limits().head_size
HEADER_LINES = Limits().header_lines
PIPELINED_REQUESTS = Limits().pipelined_requests


@pytest.fixture(scope="module")
def server(start_for_module: Start) -> Iterator[Gunicorn]:
    server = start_for_module("--access-logfile=-", **SHORT_LIMITS)
    yield server
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.log
    assert "[ERROR]" not in server.log


@contextmanager
def connect(server: Gunicorn, data: bytes = b"") -> Iterator[socket.socket]:
    """Open a connection and send data over it."""
    with socket.create_connection(server.address, TIMEOUT) as client:
        client.sendall(data)
        yield client


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    data = b""
    while part := client.recv(65536):
        data += part
    return data


def statuses(responses: bytes) -> list[int]:
    return [int(part[:3]) for part in responses.split(b"HTTP/1.1 ")[1:]]


def test_exception_after_a_response_is_logged_and_leaves_the_connection_open(start: Start) -> None:
    server = start("--access-logfile=-")
    server.wait_for_log("Application startup complete.")

    with httpx.Client(base_url=server.url, timeout=TIMEOUT, limits=httpx.Limits(max_connections=1)) as client:
        responses = [client.get("/fail") for _ in range(20)]

    assert {response.status_code for response in responses} == {200}
    assert {response.headers.get("connection") for response in responses} == {None}
    until(lambda: server.log.count("RuntimeError: after the response") == 20, "each exception is logged")
    assert server.log.count("Exception in ASGI application") == 20


def test_exception_before_a_response_returns_500_and_is_logged_once(start: Start) -> None:
    server = start()

    response = server.get("/sleep/forever")

    assert response.status_code == 500
    server.wait_for_log("ValueError: could not convert string to float: 'forever'")
    assert server.log.count("Exception in ASGI application") == 1


# Malformed requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", id="TLS"),
        pytest.param(b"GET /pid HTTP/2.0\r\n\r\n", id="no Host"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /pid HTTP/3.7\r\nHost: test\r\n\r\n", id="version"),
        pytest.param(b"get /pid HTTP/1.1\r\nHost: test\r\n\r\n", id="method in lower case"),
        pytest.param(b"HACK /pid HTTP/1.1\r\nHost: test\r\n\r\n", id="method"),
        pytest.param(b"CONNECT example.com:443 HTTP/1.1\r\nHost: test\r\n\r\n", id="tunnel"),
        pytest.param(b"GET http://example.com HTTP/1.1\r\nHost: test\r\n\r\n", id="no path"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: test\r\n\r\n", id="path not in ASCII"),
        pytest.param(b"GET /pid HTTP/1.1\nHost: test\n\n", id="bare line feeds"),
        pytest.param(GET + b"Folded: a\r\n b\r\n\r\n", id="folded header"),
        pytest.param(b"GET /pid HTTP/1.1\r\nAccept: */*\r\n\r\n", id="no Host"),
        pytest.param(GET + b"Host: other\r\n\r\n", id="two Hosts"),
        pytest.param(b"GET /pid HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", id="two Hosts in HTTP/1.0"),
        pytest.param(GET + b"Nul: \x00\r\n\r\n", id="NUL"),
        pytest.param(GET + b"No colon\r\n\r\n", id="no colon"),
        pytest.param(GET + b"Blank : a\r\n\r\n", id="blank before the colon"),
        pytest.param(POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED, id="CL.TE"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n" + SMUGGLED, id="TE.CL"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n" + SMUGGLED, id="TE.TE"),
        pytest.param(POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + SMUGGLED, id="chunked not last"),
        pytest.param(POST + b"Transfer-Encoding: xchunked\r\n\r\n" + SMUGGLED, id="unknown encoding"),
        pytest.param(POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", id="two lengths"),
        pytest.param(POST + b"Content-Length: 4, 4\r\n\r\nabcd", id="list of lengths"),
        pytest.param(POST + b"Content-Length: -4\r\n\r\nabcd", id="negative length"),
        pytest.param(POST + b"Content-Length: 99999999999999999999\r\n\r\n", id="length of many digits"),
        pytest.param(CHUNKED + b"x\r\n", id="chunk size"),
        pytest.param(CHUNKED + b"fffffffffffffffff\r\n", id="chunk size of many digits"),
        pytest.param(CHUNKED + b"2\n{}\n0\n\n", id="chunk with bare line feeds"),
    ],
)
def test_malformed_request_returns_400_and_closes_the_connection(server: Gunicorn, request_: bytes) -> None:
    with connect(server, request_) as client:
        response = read_all(client)

    head, _, body = response.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert statuses(response) == [400]
    assert body == b"Invalid HTTP request received."
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["connection"] == "close"
    assert headers["date"]
    assert f"request rejected: id {headers['x-request-id']}, status 400, client 127.0.0.1" in server.log
    assert "Invalid HTTP request received" not in server.log  # Uvicorn's log line
    assert "server" not in headers


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET /" + b"a" * HEAD_SIZE + b" HTTP/1.1\r\nHost: test\r\n\r\n", id="request line"),
        pytest.param(b"GET /" + b"a" * 9_000_000, id="endless request line"),
        pytest.param(GET + b"A: " + b"a" * HEAD_SIZE + b"\r\n\r\n", id="header"),
        pytest.param(GET + b"A: " + b"a" * 9_000_000, id="endless header"),
        pytest.param(GET + b"A: b\r\n" * (HEAD_SIZE // 6) + b"\r\n", id="headers"),
        pytest.param(GET + b"A: b\r\n" * 1_000_000, id="endless headers"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\nA: " + b"a" * 9_000_000, id="endless trailer"),
    ],
)
def test_head_too_large_returns_431(server: Gunicorn, request_: bytes) -> None:
    with connect(server, request_) as client:
        response = read_all(client)

    assert statuses(response) == [431]
    assert response.endswith(b"The request line and headers are too large.")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(GET + b"A:\r\n" * HEADER_LINES + b"\r\n", id="headers"),
        pytest.param(GET + b"A:\r\n" * (HEADER_LINES + 1), id="incomplete head"),
    ],
)
def test_too_many_headers_return_431(server: Gunicorn, request_: bytes) -> None:
    """Short headers use so much memory that limiting the size of the head is not enough."""
    assert len(request_) < HEAD_SIZE

    with connect(server, request_) as client:
        response = read_all(client)

    assert statuses(response) == [431]


def test_maximum_number_of_headers_is_accepted_in_each_request(server: Gunicorn) -> None:
    headers = b"A:\r\n" * (HEADER_LINES - 2)
    with connect(server, GET + b"A:\r\n" + headers + b"\r\n" + GET + b"Connection: close\r\n" + headers) as client:
        client.sendall(b"\r\n")
        responses = read_all(client)

    assert statuses(responses) == [200, 200]


def test_head_of_the_maximum_size_is_accepted(server: Gunicorn) -> None:
    head = GET + b"Connection: close\r\nA: "
    head += b"a" * (HEAD_SIZE - len(head) - len(b"\r\n\r\n"))

    with connect(server, head) as client:
        client.sendall(b"\r\n\r\n")
        response = read_all(client)

    assert statuses(response) == [200]


def test_http_1_0_without_host_is_accepted(server: Gunicorn) -> None:
    """HAProxy's default health check sends such a request."""
    with connect(server, b"OPTIONS / HTTP/1.0\r\n\r\n") as client:
        response = read_all(client)

    assert statuses(response) == [200]


def test_size_of_a_body_does_not_count_for_the_next_head(server: Gunicorn) -> None:
    body = b" " * 100_000
    with connect(server, POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + GET) as client:
        client.sendall(b"Connection: close\r\n\r\n")
        responses = read_all(client)

    assert statuses(responses) == [200, 200]
    assert b"100000" in responses


def test_pipelined_requests_beyond_the_limit_are_not_answered(server: Gunicorn) -> None:
    """Without a limit, the queue could exhaust memory: a queued request uses a hundred times its size on the wire."""
    with connect(server, (GET + b"\r\n") * 5000) as client:
        responses = read_all(client)

    assert statuses(responses) == [200] * (PIPELINED_REQUESTS + 1)


def test_trailers_are_dropped(server: Gunicorn) -> None:
    request = b"POST /headers HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"0\r\nX-Trailer: from-a-trailer\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
    with connect(server, request + b"2\r\n{}\r\n" + trailers + GET) as client:
        client.sendall(b"Connection: close\r\n\r\n")
        responses = read_all(client)

    assert statuses(responses) == [200, 200]
    assert b"from-a-trailer" not in responses
    assert "192.0.2.1" not in server.log


def test_garbage_after_a_request_does_not_replace_its_response(server: Gunicorn) -> None:
    with connect(server, GET + b"\r\ngarbage\r\n\r\n") as client:
        responses = read_all(client)

    assert statuses(responses) == [200]


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"garbage\r\n\r\n", id="head"),
        pytest.param(CHUNKED + b"garbage\r\n", id="body"),
        pytest.param(CHUNKED + b"1\r\n{\r\n" + b"x" * 9, id="rest of a body"),
    ],
)
def test_malformed_request_in_the_pipeline_leaves_earlier_responses_alone(server: Gunicorn, garbage: bytes) -> None:
    with connect(server, SLEEP + POST + b"Content-Length: 22\r\n\r\n" + b'{"refresh_token": "x"}' + garbage) as client:
        responses = read_all(client)

    assert statuses(responses) == [200, 200]


def test_disconnect_with_pipelined_requests_logs_no_error(server: Gunicorn) -> None:
    with connect(server, SLEEP + SLEEP):
        pass
    with connect(server, SLEEP + GET + b"Connection: close\r\n\r\n") as client:  # ends after the connection above
        responses = read_all(client)

    assert statuses(responses) == [200, 200]


# Upgrades ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize("framing", [b"Content-Length: 34", b"Transfer-Encoding: chunked"])
def test_upgrade_request_with_a_body_returns_400(server: Gunicorn, protocol: bytes, framing: bytes) -> None:
    upgrade = POST + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n" + framing + b"\r\n\r\n"
    with connect(server, upgrade) as client:
        client.sendall(b"GET /pid HTTP/1.1\r\nHost: smuggled\r\n\r\n")
        response = read_all(client)

    assert statuses(response) == [400]


def test_upgrade_to_websocket_is_ignored(server: Gunicorn) -> None:
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    with connect(server, GET + upgrade) as client:
        response = read_all(client)

    assert statuses(response) == [200]
    assert "uvicorn[standard]" not in server.log


# Slow clients --------------------------------------------------------------------------------------------------------

SLOW_REQUESTS = {
    "nothing": b"",
    "head": GET,
    "body": POST + b"Content-Length: 100\r\n\r\n{",
    "chunked body": CHUNKED + b"1\r\n{\r\n",
    "body that the application does not read": GET + b"Content-Length: 100\r\n\r\n{",
    "second head": GET + b"\r\n",
    "blank lines": GET + b"\r\n",
}


def trickle(server: Gunicorn, data: bytes, rest: bytes) -> list[int]:
    """Send `data`, then `rest` byte by byte until the server closes the connection. Return the status codes."""
    responses, deadline = b"", time.monotonic() + TIMEOUT
    with connect(server, data) as client:
        client.settimeout(0.2)
        while True:
            assert time.monotonic() < deadline
            try:
                if not (part := client.recv(65536)):
                    return statuses(responses)
                responses += part
            except TimeoutError:
                client.sendall(rest[:1])
                rest = rest[1:]


def test_request_sent_byte_by_byte_is_timed_out(server: Gunicorn, background: ThreadPoolExecutor) -> None:
    rests = {"nothing": b"", "second head": GET, "blank lines": b"\r\n" * 100}
    clients = {
        kind: background.submit(trickle, server, data, rests.get(kind, b"a" * 200))
        for kind, data in SLOW_REQUESTS.items()
    }

    responses = {kind: client.result() for kind, client in clients.items()}

    assert responses == {
        "nothing": [],
        "head": [408],
        "body": [408],
        "chunked body": [408],
        "body that the application does not read": [200],
        "second head": [200, 408],
        "blank lines": [200, 408],
    }


def test_response_before_the_end_of_the_body_is_not_reset(start: Start) -> None:
    """If the connection were closed at once, the client could not send the rest of the body or read the response."""
    server = start("--keep-alive=3600", LINGER_SECONDS="3600")
    size = 20_000_000  # more than the socket buffers take
    with connect(
        server, b"POST /pid HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    ) as client:
        client.sendall(b"x" * size)
        response = read_all(client)

    assert statuses(response) == [200]


@pytest.mark.parametrize("worker_class", ["hitless.Worker", "asyncio_worker.AsyncioWorker"])
def test_client_that_disconnects_while_it_sends_the_body_causes_no_error(start: Start, worker_class: str) -> None:
    server = start(f"--worker-class={worker_class}")
    head = b"HEAD /block/1 HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 100\r\n\r\n"
    with connect(server, head):
        server.wait_for_log("the worker is blocked")

    assert server.get("/pid").status_code == 200
    assert "Exception in ASGI application" not in server.log


def test_connection_without_a_request_is_closed_at_once(start: Start) -> None:
    """If it stayed open for a while, as after a rejected request, a request sent in that time would be lost."""
    server = start(REQUEST_SECONDS="1", LINGER_SECONDS="3600")
    with connect(server) as client:
        assert read_all(client) == b""


def test_request_timeout_disconnects_the_application_that_reads_the_body(server: Gunicorn) -> None:
    disconnects = server.log.count("the client has disconnected")
    with connect(server, SLOW_REQUESTS["body"]) as client:
        response = read_all(client)

    assert statuses(response) == [408]
    server.wait_for_log("the client has disconnected", disconnects + 1)


def test_slow_but_steady_upload_is_accepted(server: Gunicorn) -> None:
    """The client sends at twice the minimum rate, and takes longer than `request_seconds`."""
    body = b"x" * 2400
    with connect(server, POST + b"Connection: close\r\nContent-Length: 2400\r\n\r\n") as client:
        for start in range(0, len(body), 400):
            client.sendall(body[start : start + 400])
            time.sleep(0.4)
        response = read_all(client)

    assert statuses(response) == [200]


def test_body_without_progress_is_timed_out_however_much_has_arrived(server: Gunicorn) -> None:
    """If the minimum rate were the only limit, the server would keep the client's 2 MB in memory for an hour."""
    body = b"x" * 2_000_000
    with connect(server, POST + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body) as client:
        response = read_all(client)

    assert statuses(response) == [408]


def test_pipelined_request_is_not_timed_out_while_it_waits_for_an_earlier_response(server: Gunicorn) -> None:
    with connect(server, SLEEP + POST + b"Connection: close\r\nContent-Length: 22\r\n\r\n{") as client:
        responses = client.recv(65536)
        client.sendall(b'"refresh_token": "x"}')
        responses += read_all(client)

    assert statuses(responses) == [200, 200]


@pytest.mark.parametrize(("data", "status"), [(GET, 408), (b"garbage\r\n\r\n", 400)], ids=["slow", "malformed"])
def test_request_over_tls_is_rejected(start: Start, tls: TLS, data: bytes, status: int) -> None:
    server = start(f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}", **SHORT_LIMITS)

    with connect(server) as plain, tls.client.wrap_socket(plain, server_hostname="127.0.0.1") as client:
        client.sendall(data)
        response = read_all(client)

    assert statuses(response) == [status]
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def open_files(server: Gunicorn) -> int:
    """Return how many files and connections the server's only worker has open."""
    (worker,) = re.findall(r"Started server process \[(\d+)\]", server.log)
    return len(list(Path(f"/proc/{worker}/fd").iterdir()))


NUMBER_OF_SLOW_CLIENTS = 100


def test_slow_clients_are_disconnected_while_others_are_served(start: Start) -> None:
    server = start("--access-logfile=-", **SHORT_LIMITS)
    large = b"GET /large/10000000 HTTP/1.1\r\nHost: test\r\n\r\n"  # larger than all buffers, and never read
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client, ExitStack() as stack:
        client.get("/pid")
        before = open_files(server)

        for data in [*SLOW_REQUESTS.values(), large]:
            for _ in range(NUMBER_OF_SLOW_CLIENTS):
                stack.enter_context(connect(server, data))
        responses = [client.get("/pid") for _ in range(50)]

        assert [response.status_code for response in responses] == [200] * 50
        until(lambda: open_files(server) <= before, "all slow clients are disconnected")
        assert server.log.count("status 408") == 3 * NUMBER_OF_SLOW_CLIENTS
        assert client.get("/pid").status_code == 200
    assert "Traceback" not in server.log


# Connections that are kept open --------------------------------------------------------------------------------------


def test_connection_is_idle_after_a_body_that_arrives_later_than_the_response(server: Gunicorn) -> None:
    with connect(server, b"POST /pid HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n") as client:
        response = client.recv(65536)  # possibly only the head, if the response's body arrives later
        client.sendall(b"x")
        response += read_all(client)  # the keep-alive timeout is shorter than the socket's timeout

        assert statuses(response) == [200]


def test_pipelined_body_is_bounded_while_an_earlier_request_polls(server: Gunicorn) -> None:
    with connect(server, b"GET /poll HTTP/1.1\r\nHost: test\r\n\r\n") as client:
        client.sendall(POST + b"Content-Length: 8000000\r\n\r\n" + b"x" * 8_000_000)

        assert statuses(read_all(client)) == [200]


def test_upload_that_runs_at_a_shutdown_is_the_last_request_of_its_connection(start: Start) -> None:
    server = start("--keep-alive=3600", "--graceful-timeout=3600", "--timeout=3600")
    with connect(server, POST + b"Content-Length: 2\r\n\r\nx") as client:
        server.get("/pid")  # once this is answered, the worker has read the start of the upload
        server.send(signal.SIGTERM)
        time.sleep(3)  # by now, the worker has closed idle connections
        client.sendall(b"x")

        assert read_all(client).endswith(b"\r\n1\r\n2\r\n0\r\n\r\n")


def test_body_that_the_application_does_not_read_is_not_kept(start: Start) -> None:
    server = start("--keep-alive=3600")
    pid = int(server.get("/pid").text)
    before = memory(pid)
    body = b"x" * 100_000
    with ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(connect(server, b"POST /pid HTTP/1.1\r\nHost: test\r\n"))
            client.sendall(b"Content-Length: 100000\r\n\r\n" + body)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")

        assert memory(pid) - before < 5_000_000  # half of the data that was sent
