"""Connections that are opened at the same time and kept open are distributed evenly among the workers."""

import os
import re
import resource
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from certificates import TLS, make_certificate
from gunicorn_process import Gunicorn, Start
from hitless.server import LAST_REQUESTS_SECONDS
from processes import TIMEOUT, until

# Maximum number of open files per worker.
MAX_FILES = 300


@contextmanager
def connect(server: Gunicorn, number: int) -> Iterator[list[socket.socket]]:
    """Open `number` connections as fast as possible."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(server.address, TIMEOUT)) for _ in range(number)]


def send(client: socket.socket, path: str) -> None:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())


def read_pid(client: socket.socket) -> bytes:
    """Read a response and return the process id in its body."""
    response = b""
    while not response.endswith(b"0\r\n\r\n"):
        response += (received := client.recv(1000))
        assert received, "closed without a response"
    return response.split(b"\r\n")[-4]


def connection_counts(url: str, verify: ssl.SSLContext | bool = True) -> list[int]:
    """Return the number of open connections for each worker that accepts new connections."""
    counts: list[int] = httpx.get(f"{url}/connections", verify=verify, timeout=TIMEOUT).json()
    return counts


@pytest.fixture(params=["hitless.Worker", "asyncio_worker.AsyncioWorker"])
def worker_class(request: pytest.FixtureRequest) -> str:
    return f"--worker-class={request.param}"


@pytest.fixture
def two_workers(worker_class: str, start: Start) -> Gunicorn:
    server = start(worker_class, WEB_CONCURRENCY="2")
    until(lambda: len(connection_counts(server.url)) == 2, "both workers accept")
    return server


@pytest.fixture
def blocked_pid(two_workers: Gunicorn) -> Iterator[bytes]:
    """Block the event loop of one of the two workers for the whole test, and return its process id."""
    with connect(two_workers, 1) as (client,):
        send(client, "/pid")
        pid = read_pid(client)
        send(client, "/block/25")
        two_workers.wait_for_log("the worker is blocked")
        yield pid


def test_connection_burst_is_shared_among_workers(two_workers: Gunicorn) -> None:
    with connect(two_workers, 200) as clients:
        for client in clients:
            send(client, "/pid")
        connections = Counter(read_pid(client) for client in clients)

    assert len(connections) == 2
    assert min(connections.values()) >= 50
    two_workers.send(signal.SIGTERM)
    assert two_workers.wait() == 0


def test_connections_in_tls_handshake_are_shared_among_workers(worker_class: str, start: Start, tls: TLS) -> None:
    server = start(worker_class, f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}", WEB_CONCURRENCY="2")
    url = server.url.replace("http", "https")
    until(lambda: len(connection_counts(url, tls.client)) == 2, "both workers accept")
    with connect(server, 200):
        until(lambda: sum(connection_counts(url, tls.client)) >= 200, "all connections are accepted")

        assert min(connection_counts(url, tls.client)) >= 50


def test_unfinished_tls_handshake_is_closed(worker_class: str, start: Start, tls: TLS) -> None:
    server = start(worker_class, f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}", HANDSHAKE_SECONDS="2")
    started_at = time.monotonic()
    with connect(server, 1) as (client,):
        assert client.recv(1000) == b""

    assert time.monotonic() - started_at < 30  # shorter than the default timeout of both event loops, 60 s


@pytest.mark.parametrize(("cipher", "is_offered"), [("AES128-GCM-SHA256", True), ("AES128-SHA256", False)])
def test_only_authenticated_ciphers_are_offered(cipher: str, is_offered: bool, start: Start, tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)  # not the shared certificate, because the client's context is changed below
    server = start(f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}")
    tls.client.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.client.set_ciphers(f"ECDHE-ECDSA-{cipher}:ECDHE-RSA-{cipher}")
    with connect(server, 1) as (plain,):
        if is_offered:
            with tls.client.wrap_socket(plain, server_hostname="localhost") as client:
                assert client.cipher()
        else:
            with pytest.raises(ssl.SSLError):
                tls.client.wrap_socket(plain, server_hostname="localhost")


def test_plain_http_on_tls_port_is_dropped_without_error(worker_class: str, start: Start, tls: TLS) -> None:
    server = start(worker_class, f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}")
    with connect(server, 1) as (client,):
        send(client, "/pid")
        assert client.recv(1000)[:2] in {b"", b"\x15\x03"}  # closed, or a TLS alert

    response = httpx.get(f"{server.url.replace('http', 'https')}/pid", verify=tls.client, timeout=TIMEOUT)

    assert response.status_code == 200
    assert "exception" not in server.log.lower()


def test_closed_connections_are_not_counted(two_workers: Gunicorn) -> None:
    with httpx.Client(timeout=TIMEOUT) as observer:  # opens only one connection, because it is counted as well

        def total() -> int:
            return sum(observer.get(f"{two_workers.url}/connections").json())

        with connect(two_workers, 100):
            until(lambda: total() > 100, "all connections are counted")

        until(lambda: total() <= 2, "only the observer's connection is counted")


def test_blocked_worker_gets_no_new_connections(two_workers: Gunicorn, blocked_pid: bytes) -> None:
    with connect(two_workers, 50) as clients:
        for client in clients:
            send(client, "/pid")
        connections = Counter(read_pid(client) for client in clients)

    assert connections.total() == 50
    assert blocked_pid not in connections


def test_worker_out_of_file_descriptors_accepts_again_later(worker_class: str, start: Start) -> None:
    server = start(worker_class, MAX_FILES=str(MAX_FILES))
    with connect(server, MAX_FILES):
        server.wait_for_log("Not accepting connections for 1 s: [Errno 24] Too many open files")

    assert server.get("/pid").status_code == 200
    assert server.log.count("Not accepting connections") < 5  # the worker pauses between attempts
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_worker_out_of_file_descriptors_closes_connections_that_sent_nothing(worker_class: str, start: Start) -> None:
    server = start(worker_class, MAX_FILES=str(MAX_FILES), REQUEST_SECONDS="3600")
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as used, connect(server, MAX_FILES):
        used.get("/pid")
        server.wait_for_log("Not accepting connections for 1 s: [Errno 24] Too many open files")

        assert server.get("/pid").status_code == 200


def test_worker_out_of_file_descriptors_closes_connections_in_their_tls_handshake(
    worker_class: str, start: Start, tls: TLS
) -> None:
    files = (f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}")
    server = start(worker_class, *files, MAX_FILES=str(MAX_FILES), HANDSHAKE_SECONDS="3600")
    with connect(server, MAX_FILES):
        server.wait_for_log("Not accepting connections for 1 s: [Errno 24] Too many open files")

        response = httpx.get(f"{server.url.replace('http', 'https')}/pid", verify=tls.client, timeout=TIMEOUT)

    assert response.status_code == 200
    assert "Traceback" not in server.log


def test_new_tls_handshakes_are_kept_when_file_descriptors_run_out_again(
    worker_class: str, start: Start, tls: TLS
) -> None:
    files = (f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}")
    server = start(worker_class, *files, MAX_FILES=str(MAX_FILES), EXHAUSTED_SECONDS="3600")
    with connect(server, MAX_FILES) as clients:
        server.wait_for_log("Not accepting connections")
        server.send(signal.SIGTERM)
        server.wait_for_log("Not accepting connections", times=2)  # logged again while the worker accepts the backlog

        with tls.client.wrap_socket(clients[0], server_hostname="localhost") as secure:
            send(secure, "/pid")

            assert read_pid(secure)
    assert server.wait() == 0


def test_limit_on_open_files_is_raised_to_the_hard_limit(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, soft), hard))
    try:
        server = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    limits = Path(f"/proc/{server.get('/pid').text}/limits").read_text()

    (files,) = re.findall(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)
    assert files == (str(hard), str(hard))


def test_killed_worker_is_not_counted(two_workers: Gunicorn) -> None:
    os.kill(int(two_workers.get("/pid").text), signal.SIGKILL)
    two_workers.wait_for_log("Application startup complete.", 3)

    until(lambda: len(connection_counts(two_workers.url)) == 2, "two workers are counted")


def test_worker_replaced_by_sighup_is_not_counted(start: Start) -> None:
    server = start()
    with connect(server, 1) as (client,):
        send(client, "/sleep/3600")
        server.wait_for_log("a request is waiting")
        server.send(signal.SIGHUP)

        until(lambda: connection_counts(server.url) == [1], "only the new worker is counted")

        client.setblocking(False)
        with pytest.raises(BlockingIOError):  # the old worker still runs
            client.recv(1)


def test_sigterm_serves_every_connection_in_the_backlog(worker_class: str, start: Start) -> None:
    server = start(worker_class)
    with connect(server, 1) as (blocked,), ExitStack() as stack:
        send(blocked, "/block/2")
        server.wait_for_log("the worker is blocked")
        clients = stack.enter_context(connect(server, 200))
        for client in clients:
            send(client, "/block/0.01")  # together, these take longer than a stopping worker accepts connections

        server.send(signal.SIGTERM)

        assert len({read_pid(client) for client in clients}) == 1
        assert server.wait() == 0


def test_sigterm_waits_for_tls_handshakes(worker_class: str, start: Start, tls: TLS) -> None:
    server = start(worker_class, f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}")
    url = server.url.replace("http", "https")
    with connect(server, 1) as (client,):
        until(lambda: sum(connection_counts(url, tls.client)) == 2, "the connection is accepted")
        server.send(signal.SIGTERM)
        time.sleep(3 * LAST_REQUESTS_SECONDS)  # longer than a stopping worker keeps idle connections open

        with tls.client.wrap_socket(client, server_hostname="localhost") as secure:
            send(secure, "/pid")

            assert read_pid(secure)
    assert server.wait() == 0
