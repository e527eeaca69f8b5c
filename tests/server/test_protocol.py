"""What is refused before the application sees it, and whom a slow client keeps waiting: nobody."""

import json
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
from processes import PATIENCE, free_port, until

from tests.conftest import SECRET_KEY
from tests.middleware.test_security_headers import STRICT
from tests.people import PASSWORD
from tests.server.conftest import IMPATIENT, Gunicorn, Start

GET = b"GET /health HTTP/1.1\r\nHost: test\r\n"
POST = b"POST /auth/logout HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"0\r\n\r\nDELETE /users/me HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, clean_environment: dict[str, str]) -> Iterator[Gunicorn]:
    """The whole service, for requests that ask for nothing of it."""
    environment = clean_environment | {"WEB_CONCURRENCY": "1"}
    arguments = ["app.main:app", f"--config={IMPATIENT}"]
    server = Gunicorn(tmp_path_factory.mktemp("server"), environment, free_port(), arguments)
    server.says("Application startup complete.")
    yield server
    server.send(signal.SIGTERM)
    assert server.ends() == 0
    assert "Traceback" not in server.log


@contextmanager
def connection(server: Gunicorn, sent: bytes = b"", host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_connection(server.address, PATIENCE, (host, 0)) as client:
        client.sendall(sent)
        yield client


def read(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    answer = b""
    while part := client.recv(65536):
        answer += part
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /health HTTP/3.7\r\nHost: test\r\n\r\n", id="version"),
        pytest.param(b"get /health HTTP/1.1\r\nHost: test\r\n\r\n", id="method in lower case"),
        pytest.param(b"HACK /health HTTP/1.1\r\nHost: test\r\n\r\n", id="method"),
        pytest.param(b"CONNECT example.com:443 HTTP/1.1\r\nHost: test\r\n\r\n", id="tunnel"),
        pytest.param(b"GET http://example.com HTTP/1.1\r\nHost: test\r\n\r\n", id="no path"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: test\r\n\r\n", id="path not in ASCII"),
        pytest.param(b"GET /health HTTP/1.1\nHost: test\n\n", id="bare line feeds"),
        pytest.param(GET + b"Folded: a\r\n b\r\n\r\n", id="folded header"),
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
def test_what_is_not_http_is_400_and_the_last_on_its_connection(server: Gunicorn, request_: bytes) -> None:
    with connection(server, request_) as client:
        answer = read(client)

    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert statuses(answer) == [400]
    assert json.loads(body) == {"error": "Not a valid HTTP request", "type": "malformed_request"}
    assert headers.items() >= {"content-type": "application/json", "connection": "close", **STRICT}.items()
    assert f'"request_id": "{headers["x-request-id"]}", "status": 400, "client": "127.0.0.1"' in server.log
    assert "server" not in headers


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_it_is_answered_with_the_headers_that_the_application_gives_to_errors(
    impatient: Start, tls: TLS, database_url: str, scheme: str
) -> None:
    files = {"SSL_CERTFILE": str(tls.certfile), "SSL_KEYFILE": str(tls.keyfile)} if scheme == "https" else {}
    production = {"ENVIRONMENT": "production", "SECRET_KEY": SECRET_KEY, "ALLOWED_HOSTS": "*"}
    server = impatient(DATABASE_URL=database_url, **production, **files)

    def headers_of_answer(request_: bytes) -> dict[str, str]:
        with ExitStack() as stack:
            client = stack.enter_context(connection(server))
            if files:
                client = stack.enter_context(tls.client.wrap_socket(client, server_hostname="127.0.0.1"))
            client.sendall(request_)
            head = read(client).decode().partition("\r\n\r\n")[0]
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        return headers | dict.fromkeys(headers.keys() & {"date", "content-length", "x-request-id"}, "differs")

    refused = headers_of_answer(b"rubbish\r\n\r\n")

    assert refused == headers_of_answer(b"GET /health/nowhere HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    assert ("strict-transport-security" in refused) == (scheme == "https")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET /" + b"a" * MAX_HEAD_SIZE + b" HTTP/1.1\r\nHost: test\r\n\r\n", id="request line"),
        pytest.param(b"GET /" + b"a" * 9_000_000, id="request line without end"),
        pytest.param(GET + b"A: " + b"a" * MAX_HEAD_SIZE + b"\r\n\r\n", id="header"),
        pytest.param(GET + b"A: " + b"a" * 9_000_000, id="header without end"),
        pytest.param(GET + b"A: b\r\n" * (MAX_HEAD_SIZE // 6) + b"\r\n", id="headers"),
        pytest.param(GET + b"A: b\r\n" * 1_000_000, id="headers without end"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\nA: " + b"a" * 9_000_000, id="trailer without end"),
    ],
)
def test_a_head_that_is_too_large_is_431(server: Gunicorn, request_: bytes) -> None:
    with connection(server, request_) as client:
        answer = read(client)

    assert statuses(answer) == [431]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "headers_too_large"


def test_a_head_up_to_the_limit_is_taken(server: Gunicorn) -> None:
    head = GET + b"Connection: close\r\nA: "
    head += b"a" * (MAX_HEAD_SIZE - len(head) - len(b"\r\n\r\n"))

    with connection(server, head) as client:
        client.sendall(b"\r\n\r\n")
        answer = read(client)

    assert statuses(answer) == [200]


def test_a_request_behind_a_large_body_is_not_taken_for_a_part_of_it(server: Gunicorn) -> None:
    body = b" " * 100_000
    with connection(server, POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + GET) as client:
        client.sendall(b"Connection: close\r\n\r\n")
        answer = read(client)

    assert statuses(answer)[1:] == [200]
    assert answer.endswith(b'{"status":"alive"}')


def test_nobody_sends_more_requests_than_are_answered(server: Gunicorn) -> None:
    """Of each one that waits, the server keeps a hundred times its size."""
    with connection(server, (GET + b"\r\n") * 5000) as client:
        answer = read(client)

    assert statuses(answer) == [200] * (MAX_PIPELINED + 1)


def test_what_stands_behind_a_body_is_no_header(server: Gunicorn) -> None:
    trailers = b"0\r\nX-Request-ID: from-a-trailer\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
    with connection(server, CHUNKED + b'15\r\n{"refresh_token":"x"}\r\n' + trailers + GET) as client:
        client.sendall(b"Connection: close\r\n\r\n")
        answer = read(client)

    assert statuses(answer) == [204, 200]
    assert b"from-a-trailer" not in answer
    assert "192.0.2.1" not in server.log


def test_rubbish_behind_a_request_does_not_answer_it(server: Gunicorn) -> None:
    with connection(server, GET + b"\r\nrubbish\r\n\r\n") as client:
        answer = read(client)

    assert statuses(answer) == [200]


@pytest.mark.parametrize("rubbish", [b"rubbish\r\n\r\n", CHUNKED + b"rubbish\r\n", CHUNKED + b"1\r\n{\r\n" + b"x" * 9])
def test_a_request_at_fault_takes_no_others_answer(impatient: Start, rubbish: bytes) -> None:
    """Whoever wrote something is told so, whatever they sent behind it."""
    server = impatient("tests.server.with_worse:app")
    slow = b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n"

    with connection(
        server, slow + POST + b"Content-Length: 22\r\n\r\n" + b'{"refresh_token": "x"}' + rubbish
    ) as client:
        answer = read(client)

    assert statuses(answer) == [200, 204]
    assert '"level": "error"' not in server.log


def test_who_leaves_before_the_answers_leaves_no_error_behind(impatient: Start) -> None:
    server = impatient("tests.server.with_worse:app")
    slow = b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n"

    with connection(server, slow + slow):
        pass
    with connection(server, slow + GET + b"Connection: close\r\n\r\n") as client:  # no earlier than the others
        answer = read(client)

    assert statuses(answer) == [200, 200]
    assert '"level": "error"' not in server.log


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize("length", [b"Content-Length: 38", b"Transfer-Encoding: chunked"])
def test_what_stands_behind_a_wish_for_another_protocol_is_no_request(
    server: Gunicorn, protocol: bytes, length: bytes
) -> None:
    wish = POST + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n" + length + b"\r\n\r\n"
    with connection(server, wish) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: smuggled\r\n\r\n")
        answer = read(client)

    assert statuses(answer) == [400]


def test_another_protocol_is_not_spoken(server: Gunicorn) -> None:
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    with connection(server, GET + upgrade) as client:
        answer = read(client)

    assert statuses(answer) == [200]
    assert "uvicorn[standard]" not in server.log


# Slow clients ------------------------------------------------------------------------------------------------------

SLOW = {
    "nothing": b"",
    "head": GET,
    "body": POST + b"Content-Length: 100\r\n\r\n{",
    "chunked body": CHUNKED + b"1\r\n{\r\n",
    "unwanted body": GET + b"Content-Length: 100\r\n\r\n{",
    "second head": GET + b"\r\n",
    "blank lines": GET + b"\r\n",
}


def trickle(server: Gunicorn, beginning: bytes, rest: bytes) -> list[int]:
    """Sends the rest a byte at a time for as long as it may; gives the answers."""
    answer, deadline = b"", time.monotonic() + PATIENCE
    with connection(server, beginning) as client:
        client.settimeout(0.2)
        while True:
            assert time.monotonic() < deadline
            try:
                if not (part := client.recv(65536)):
                    return statuses(answer)
                answer += part
            except TimeoutError:
                client.sendall(rest[:1])
                rest = rest[1:]


def test_a_client_that_sends_a_byte_at_a_time_is_left(server: Gunicorn, background: ThreadPoolExecutor) -> None:
    rests = {"nothing": b"", "second head": GET, "blank lines": b"\r\n" * 100}
    clients = {
        kind: background.submit(trickle, server, beginning, rests.get(kind, b"a" * 200))
        for kind, beginning in SLOW.items()
    }

    answers = {kind: client.result() for kind, client in clients.items()}

    assert answers == {
        "nothing": [],
        "head": [408],
        "body": [408],
        "chunked body": [408],
        "unwanted body": [200],
        "second head": [200, 408],
        "blank lines": [200, 408],
    }


def test_a_client_that_sends_slowly_but_steadily_is_heard(server: Gunicorn) -> None:
    """At twice the least speed, for longer than a byte at a time is heard."""
    body = b'{"refresh_token": "x"}'.ljust(2400)
    with connection(server, POST + b"Connection: close\r\nContent-Length: 2400\r\n\r\n") as client:
        for start in range(0, len(body), 400):
            client.sendall(body[start : start + 400])
            time.sleep(0.4)
        answer = read(client)

    assert statuses(answer) == [204]


def test_a_request_that_waits_for_the_one_before_it_is_not_slow(impatient: Start) -> None:
    server = impatient("tests.server.with_worse:app")
    first = b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n"

    with connection(server, first + POST + b"Connection: close\r\nContent-Length: 22\r\n\r\n{") as client:
        answer = client.recv(65536)
        client.sendall(b'"refresh_token": "x"}')
        answer += read(client)

    assert statuses(answer) == [200, 204]


def test_a_slow_client_is_left_under_tls_too(impatient: Start, tls: TLS) -> None:
    server = impatient(SSL_CERTFILE=str(tls.certfile), SSL_KEYFILE=str(tls.keyfile))

    with connection(server) as plain, tls.client.wrap_socket(plain, server_hostname="127.0.0.1") as client:
        client.sendall(GET)
        answer = read(client)

    assert statuses(answer) == [408]


def open_files(server: Gunicorn) -> int:
    """How many files and connections the one worker has open."""
    (worker,) = re.findall(r"Started server process \[(\d+)\]", server.log)
    return len(list(Path(f"/proc/{worker}/fd").iterdir()))


MANY = 100


def test_slow_clients_keep_nobody_from_the_only_connection_to_the_database(impatient: Start, database_url: str) -> None:
    server = impatient(
        DATABASE_URL=database_url, DATABASE_POOL_SIZE="1", DATABASE_POOL_TIMEOUT="60", RATE_LIMIT="100000/minute"
    )
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client, ExitStack() as crowd:
        ann = {"email": "ann@example.com", "password": PASSWORD}
        client.post("/users/", json=ann | {"full_name": "Ann"})
        auth = f"Bearer {client.post('/auth/login', json=ann).json()['access_token']}"
        before = open_files(server)
        # Those who do not read their answers, the last of which no buffer holds.
        own = f"GET /users/me HTTP/1.1\r\nHost: test\r\nAuthorization: {auth}\r\n\r\n".encode()
        large = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: test\r\n\r\n" * (MAX_PIPELINED // 2)

        for sent in [*SLOW.values(), own + large]:
            for _ in range(MANY):
                crowd.enter_context(connection(server, sent))
        answers = [client.get("/users/me", headers={"Authorization": auth}) for _ in range(50)]

        assert [answer.status_code for answer in answers] == [200] * 50
        until(lambda: open_files(server) <= before, "none of them is connected")
        assert server.log.count('"status": 408') == 3 * MANY
        assert server.log.count('"path": "/users/me", "status": 200') == MANY + 50
        assert client.get("/health/ready").status_code == 200
    assert "Traceback" not in server.log


# Addresses behind proxies ------------------------------------------------------------------------------------------

# Who connects, what it says in X-Forwarded-For, and who is taken for the client: the last that is no proxy of ours.
FORWARDED = [
    ("127.0.0.1", [], "127.0.0.1"),
    ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
    ("127.0.0.1", ["198.51.100.66, 203.0.113.7"], "203.0.113.7"),
    ("127.0.0.1", ["198.51.100.66", "203.0.113.7"], "203.0.113.7"),
    ("127.0.0.1", ["198.51.100.66, 203.0.113.7, 10.1.2.3, 10.4.5.6"], "203.0.113.7"),
    ("127.0.0.1", ["10.9.9.9, 203.0.113.7, 10.1.2.3"], "203.0.113.7"),
    ("127.0.0.1", ["<script>, ÿ, , 203.0.113.7"], "203.0.113.7"),
    ("127.0.0.1", ["1, " * 3000 + "203.0.113.7"], "203.0.113.7"),
    ("127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
    ("127.0.0.1", ["203.0.113.7, 2001:db8:1::5"], "203.0.113.7"),
    ("127.0.0.1", ["203.0.113.7, [2001:db8:1:0:0::5]:443"], "203.0.113.7"),
    ("127.0.0.1", ["198.51.100.66, 2001:db8:2::7"], "2001:db8:2::7"),
    ("127.0.0.1", ["198.51.100.66, [2001:db8:2::7]:4711"], "2001:db8:2::7"),
    ("127.0.0.1", [""], "127.0.0.1"),
    ("127.0.0.2", ["203.0.113.7"], "127.0.0.2"),
    ("127.0.0.2", ["127.0.0.1"], "127.0.0.2"),
]


def test_a_clients_address_behind_trusted_proxies_cannot_be_forged(impatient: Start) -> None:
    server = impatient(FORWARDED_ALLOW_IPS="127.0.0.1, 10.0.0.0/8, 2001:db8:1::/48", RATE_LIMIT="100/day")
    left: dict[str, int] = {}

    for number, (peer, forwarded, client) in enumerate(FORWARDED):
        left[client] = left.get(client, 100) - 1
        headers = "".join(f"X-Forwarded-For: {value}\r\n" for value in forwarded)
        request = f"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nX-Request-ID: n{number}\r\n{headers}\r\n"
        with connection(server, request.encode("latin-1"), peer) as connected:
            answer = read(connected)

        lines = [json.loads(line) for line in server.log.splitlines() if f'"request_id": "n{number}"' in line]
        assert [line["client"] for line in lines] == [client], forwarded
        assert f'ratelimit: "default";r={left[client]};'.encode() in answer, forwarded
