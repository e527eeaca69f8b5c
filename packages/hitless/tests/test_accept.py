"""How connections that come at once, and are kept, are shared among workers."""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ssl import SSLContext

import httpx
import pytest
from certificates import TLS
from gunicorn_process import Gunicorn, Start
from hitless.server import LAST_REQUESTS_SECONDS
from processes import PATIENCE, until

# What each worker may have open.
FILES = 300


@contextmanager
def connected(server: Gunicorn, times: int) -> Iterator[list[socket.socket]]:
    """Opens connections, one as soon as the other."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(server.address, PATIENCE)) for _ in range(times)]


def send(client: socket.socket, path: str) -> None:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())


def worker_of(client: socket.socket) -> bytes:
    """The process that answers on a connection."""
    answer = b""
    while not answer.endswith(b"0\r\n\r\n"):
        answer += (received := client.recv(1000))
        assert received, "closed without an answer"
    return answer.split(b"\r\n")[-4]


def counted(url: str, verify: SSLContext | bool = True) -> list[int]:
    """The connections of each worker that accepts."""
    counts: list[int] = httpx.get(f"{url}/counted/", verify=verify, timeout=PATIENCE).json()
    return counts


@pytest.fixture(params=["hitless.Worker", "asyncio_worker.AsyncioWorker"])
def worker_class(request: pytest.FixtureRequest) -> str:
    return f"--worker-class={request.param}"


@pytest.fixture
def two_workers(worker_class: str, start: Start) -> Gunicorn:
    server = start(worker_class, WEB_CONCURRENCY="2")
    until(lambda: len(counted(server.url)) == 2, "both accept")
    return server


@pytest.fixture
def blocked(two_workers: Gunicorn) -> Iterator[bytes]:
    """One of the two, which does nothing until the end."""
    with connected(two_workers, 1) as (client,):
        send(client, "/at/once")
        worker = worker_of(client)
        send(client, "/block/25")
        two_workers.wait_for_log("the worker is blocked")
        yield worker


def test_each_worker_gets_its_part_of_them(two_workers: Gunicorn) -> None:
    with connected(two_workers, 200) as clients:
        for client in clients:
            send(client, "/at/once")
        parts = Counter(worker_of(client) for client in clients)

    assert len(parts) == 2
    assert min(parts.values()) >= 50
    two_workers.send(signal.SIGTERM)
    assert two_workers.wait() == 0


def test_those_that_have_not_begun_with_tls_count(worker_class: str, start: Start, tls: TLS) -> None:
    server = start(worker_class, f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}", WEB_CONCURRENCY="2")
    url = server.url.replace("http", "https")
    until(lambda: len(counted(url, tls.client)) == 2, "both accept")
    with connected(server, 200):
        until(lambda: sum(counted(url, tls.client)) >= 200, "all are accepted")

        assert min(counted(url, tls.client)) >= 50


def test_what_is_no_tls_harms_nothing(worker_class: str, start: Start, tls: TLS) -> None:
    server = start(worker_class, f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}")
    with connected(server, 1) as (client,):
        send(client, "/at/once")
        assert client.recv(1000)[:2] in {b"", b"\x15\x03"}  # an alert, or nothing

    answer = httpx.get(f"{server.url.replace('http', 'https')}/at/once", verify=tls.client, timeout=PATIENCE)

    assert answer.status_code == 200
    assert "exception" not in server.log.lower()


def test_connections_that_have_ended_count_no_more(two_workers: Gunicorn) -> None:
    with httpx.Client(timeout=PATIENCE) as asking:  # on one connection: for another, one worker would count anew

        def total() -> int:
            return sum(asking.get(f"{two_workers.url}/counted/").json())

        with connected(two_workers, 100):
            until(lambda: total() > 100, "all are counted")

        until(lambda: total() <= 2, "none is counted but those who ask")


def test_a_worker_that_is_blocked_leaves_all_to_the_other(two_workers: Gunicorn, blocked: bytes) -> None:
    with connected(two_workers, 50) as clients:
        for client in clients:
            send(client, "/at/once")
        parts = Counter(worker_of(client) for client in clients)

    assert parts.total() == 50
    assert blocked not in parts


def test_a_worker_with_no_file_left_accepts_again_when_it_has(worker_class: str, start: Start) -> None:
    server = start(worker_class, FILES=str(FILES))
    with connected(server, FILES):
        server.wait_for_log("No connection is accepted for 1 s: [Errno 24] Too many open files")

    assert server.get("/at/once").status_code == 200
    assert server.log.count("No connection is accepted") < 5  # it has not tried all the time
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_a_worker_that_is_killed_counts_no_more(two_workers: Gunicorn) -> None:
    os.kill(int(two_workers.get("/at/once").text), signal.SIGKILL)
    two_workers.wait_for_log("Application startup complete.", 3)

    until(lambda: len(counted(two_workers.url)) == 2, "two workers count")


def test_a_worker_that_is_leaving_counts_no_more(start: Start) -> None:
    server = start()
    with connected(server, 1) as (client,):
        send(client, "/wait/3600")
        server.wait_for_log("a request is waiting")
        server.send(signal.SIGHUP)

        until(lambda: counted(server.url) == [1], "the new worker alone counts")

        client.setblocking(False)
        with pytest.raises(BlockingIOError):  # the old one is still there
            client.recv(1)


def test_all_who_wait_to_be_accepted_are_answered_before_the_last_worker_ends(worker_class: str, start: Start) -> None:
    server = start(worker_class)
    with connected(server, 1) as (blocked,), ExitStack() as stack:
        send(blocked, "/block/2")
        server.wait_for_log("the worker is blocked")
        clients = stack.enter_context(connected(server, 200))
        for client in clients:
            send(client, "/block/0.01")  # longer altogether than the worker waits

        server.send(signal.SIGTERM)

        assert len({worker_of(client) for client in clients}) == 1
        assert server.wait() == 0


def test_who_has_not_begun_with_tls_is_answered_before_the_last_worker_ends(
    worker_class: str, start: Start, tls: TLS
) -> None:
    server = start(worker_class, f"--certfile={tls.certfile}", f"--keyfile={tls.keyfile}")
    with connected(server, 1) as (client,):
        until(lambda: sum(counted(server.url.replace("http", "https"), tls.client)) == 2, "it is accepted")
        server.send(signal.SIGTERM)
        time.sleep(3 * LAST_REQUESTS_SECONDS)  # more than all others get

        with tls.client.wrap_socket(client, server_hostname="localhost") as secure:
            send(secure, "/at/once")

            assert worker_of(secure)
    assert server.wait() == 0
