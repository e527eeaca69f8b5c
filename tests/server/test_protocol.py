"""Requests that the server rejects, slow clients, and client addresses behind proxies.

The tests of hitless cover all kinds of malformed, oversized and slow requests.
"""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import hitless
import httpx
import pytest
from certificates import TLS
from gunicorn_process import Gunicorn, Start
from processes import TIMEOUT, free_port, until

from app import PREFIX
from app.middleware.security_headers import strict_headers
from tests.conftest import SECRET_KEY
from tests.people import PASSWORD

SHORT_LIMITS = Path(__file__).with_name("short_limits_conf.py")
GET = f"GET {PREFIX}/health HTTP/1.1\r\nHost: test\r\n".encode()
POST = f"POST {PREFIX}/auth/logout HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n".encode()


@pytest.fixture
def start_service(tmp_path: Path, clean_environment: dict[str, str]) -> Iterator[Start]:
    """Return a function that starts the service with one worker and short timeouts.

    The service is stopped when the test ends.
    """
    servers = []

    def start(**variables: str) -> Gunicorn:
        environment = clean_environment | {"WEB_CONCURRENCY": "1"} | variables
        server = Gunicorn(tmp_path, environment, free_port(), ["app.main:app", f"--config={SHORT_LIMITS}"])
        servers.append(server)
        server.wait_for_log("Application startup complete.")
        return server

    yield start
    for server in servers:
        server.process.terminate()
        exit_code, log = server.wait(), server.log
        server.stop()
        assert exit_code == 0
        assert "Traceback" not in log
        assert '"level": "error"' not in log


@contextmanager
def connect(server: Gunicorn, data: bytes = b"", source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Connect from the address `source`, and send the data."""
    with socket.create_connection(server.address, TIMEOUT, (source, 0)) as client:
        client.sendall(data)
        yield client


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    data = b""
    while part := client.recv(65536):
        data += part
    return data


def parse(response: bytes) -> tuple[int, dict[str, str], bytes]:
    """Parse a response into its status, headers and body."""
    head, _, body = response.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    return int(status_line.split()[1]), dict(line.split(": ", 1) for line in lines), body


# Rejected requests ---------------------------------------------------------------------------------------------------


def test_rejected_request_returns_an_error_of_the_api(start_service: Start) -> None:
    server = start_service()
    requests = {
        "malformed_request": b"GET /health HTTP/3.7\r\nHost: test\r\n\r\n",
        "headers_too_large": GET + b"A: " + b"a" * hitless.Limits().head_size + b"\r\n\r\n",
        "request_timeout": GET,
    }
    common = {name.decode(): value.decode() for name, value in strict_headers(hsts=False)}
    common |= {"content-type": "application/json", "connection": "close"}
    errors = {}

    for error_type, request in requests.items():
        with connect(server, request) as client:
            status, headers, body = parse(read_all(client))
        error = json.loads(body)
        assert error.pop("type") == error_type
        errors[status] = error
        assert headers.items() >= common.items()
        assert f'"request_id": "{headers["x-request-id"]}", "status": {status}, "client": "127.0.0.1"' in server.log
        assert "server" not in headers

    assert errors == {
        400: {"error": "Invalid HTTP request received"},
        431: {"error": "The request line and headers are too large"},
        408: {"error": "The request took too long to arrive"},
    }


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_rejected_request_gets_the_headers_of_an_application_error(
    start_service: Start, tls: TLS, database_url: str, scheme: str
) -> None:
    files = {"SSL_CERTFILE": str(tls.certfile), "SSL_KEYFILE": str(tls.keyfile)} if scheme == "https" else {}
    production = {"ENVIRONMENT": "production", "SECRET_KEY": SECRET_KEY, "ALLOWED_HOSTS": "*", "MAIL": "off"}
    server = start_service(DATABASE_URL=database_url, **production, **files)

    def send(request: bytes) -> dict[str, str]:
        """Send a request, and return the response headers. Values that vary between responses are left empty."""
        with ExitStack() as stack:
            client = stack.enter_context(connect(server))
            if files:
                client = stack.enter_context(tls.client.wrap_socket(client, server_hostname="127.0.0.1"))
            client.sendall(request)
            _, headers, _ = parse(read_all(client))
        return headers | dict.fromkeys(headers.keys() & {"date", "content-length", "x-request-id"}, "")

    rejected = send(b"garbage\r\n\r\n")

    assert rejected == send(b"GET /health/nowhere HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    assert ("strict-transport-security" in rejected) == (scheme == "https")


# Slow clients --------------------------------------------------------------------------------------------------------

SLOW_REQUESTS = [
    b"",
    GET,
    POST + b"Content-Length: 100\r\n\r\n{",
    POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    GET + b"Content-Length: 100\r\n\r\n{",  # an incomplete body that the application does not read
    GET + b"\r\n",
    GET + b"\r\n",
]
NUMBER_OF_CLIENTS = 100


def open_files(server: Gunicorn) -> int:
    """Return the number of files and connections that the single worker has open."""
    (worker,) = re.findall(r"Started server process \[(\d+)\]", server.log)
    return len(list(Path(f"/proc/{worker}/fd").iterdir()))


def count_refusals(log: str) -> int:
    """Count the 408 responses: those in the log, plus those omitted because of the limit on log lines per second."""
    not_logged = map(
        int,
        re.findall(r'"some requests outside of rate limits were not logged", "number": (\d+)', log),
    )
    return log.count('"status": 408') + sum(not_logged)


def test_slow_clients_do_not_occupy_the_only_database_connection(start_service: Start, database_url: str) -> None:
    server = start_service(
        DATABASE_URL=database_url, DATABASE_POOL_SIZE="1", DATABASE_POOL_TIMEOUT="60", RATE_LIMIT="100000/minute"
    )
    with httpx.Client(base_url=server.url + PREFIX, timeout=TIMEOUT) as client, ExitStack() as stack:
        ann = {"email": "ann@example.com", "password": PASSWORD}
        client.post("/users/", json=ann | {"full_name": "Ann"})
        auth = f"Bearer {client.post('/auth/login', json=ann).json()['access_token']}"
        before = open_files(server)
        # Clients that send these requests never read the responses, which are too large for the socket buffers.
        me = f"GET {PREFIX}/users/me HTTP/1.1\r\nHost: test\r\nAuthorization: {auth}\r\n\r\n".encode()
        large = f"GET {PREFIX}/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: test\r\n\r\n".encode() * 16

        for data in [*SLOW_REQUESTS, me + large]:
            for _ in range(NUMBER_OF_CLIENTS):
                stack.enter_context(connect(server, data))
        responses = [client.get("/users/me", headers={"Authorization": auth}) for _ in range(50)]

        assert [response.status_code for response in responses] == [200] * 50
        until(lambda: open_files(server) <= before, "all slow clients are disconnected")
        # Three of the slow requests get a 408: the one with incomplete headers, and the two POST requests.
        until(lambda: count_refusals(server.log) >= 3 * NUMBER_OF_CLIENTS, "the last second's refusals are counted")
        assert server.log.count(f'"path": "{PREFIX}/users/me", "status": 200') == NUMBER_OF_CLIENTS + 50
        assert client.get("/health/ready").status_code == 200


# Addresses behind proxies --------------------------------------------------------------------------------------------

# Each row: the peer's address, its X-Forwarded-For headers, and the expected client address. This is the last forwarded
# address that is not a trusted proxy, or the peer's address if the peer is not trusted or forwards no address.
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


def test_client_address_behind_trusted_proxies_cannot_be_forged(start_service: Start) -> None:
    server = start_service(FORWARDED_ALLOW_IPS="127.0.0.1, 10.0.0.0/8, 2001:db8:1::/48", RATE_LIMIT="100/day")
    remaining: dict[str, int] = {}

    for number, (source, forwarded, client) in enumerate(FORWARDED):
        remaining[client] = remaining.get(client, 100) - 1
        headers = "".join(f"X-Forwarded-For: {value}\r\n" for value in forwarded)
        request = f"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nX-Request-ID: n{number}\r\n{headers}\r\n"
        with connect(server, request.encode("latin-1"), source) as connection:
            response = read_all(connection)

        lines = [json.loads(line) for line in server.log.splitlines() if f'"request_id": "n{number}"' in line]
        assert [line["client"] for line in lines] == [client], forwarded
        assert f'ratelimit: "default";r={remaining[client]};'.encode() in response, forwarded
