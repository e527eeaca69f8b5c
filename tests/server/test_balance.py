"""How connections that come at once, and are kept, are shared among workers."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from app.server import balance
from tests.processes import PATIENCE, until
from tests.server.conftest import Conf, Gunicorn, Start, get

# What each worker may have open.
FILES = 300


@contextmanager
def connected(server: Gunicorn, times: int) -> Iterator[list[socket.socket]]:
    """Opens connections, one as soon as the other."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(server.address, PATIENCE)) for _ in range(times)]


def ask(client: socket.socket, path: str) -> None:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())


def worker_of(client: socket.socket) -> bytes:
    """The process that answers on a connection; nothing where it has been closed."""
    answer = b""
    while not answer.endswith(b"0\r\n\r\n"):
        try:
            received = client.recv(1000)
        except ConnectionResetError:
            received = b""
        if not received:
            return b""
        answer += received
    return answer.split(b"\r\n")[-4]


@pytest.fixture
def two_workers(start: Start) -> Gunicorn:
    server = start(WEB_CONCURRENCY="2", FILES=str(FILES))
    until(lambda: len({get(server, "/at/once").text for _ in range(10)}) == 2, "both accept")
    return server


@pytest.fixture
def blocked(two_workers: Gunicorn) -> Iterator[bytes]:
    """One of the two, which does nothing for some seconds."""
    with connected(two_workers, 1) as (client,):
        ask(client, "/at/once")
        worker = worker_of(client)
        ask(client, "/block/3")
        two_workers.says("the worker is blocked")
        yield worker


def test_each_worker_gets_its_part_of_them(two_workers: Gunicorn) -> None:
    with connected(two_workers, 200) as clients:
        for client in clients:
            ask(client, "/at/once")
        parts = Counter(worker_of(client) for client in clients)

    assert len(parts) == 2
    assert min(parts.values()) >= 50


def test_a_worker_that_is_blocked_leaves_all_to_the_other(two_workers: Gunicorn, blocked: bytes) -> None:
    with connected(two_workers, 50) as clients:
        for client in clients:
            ask(client, "/at/once")
        parts = Counter(worker_of(client) for client in clients)

    assert parts.total() == 50
    assert blocked not in parts


def test_a_worker_with_no_file_left_accepts_again_when_it_has(two_workers: Gunicorn, blocked: bytes) -> None:
    with connected(two_workers, FILES):
        two_workers.says("Too busy to share connections: OSError(24, 'Too many open files')")

    with connected(two_workers, 1) as (client,):
        ask(client, "/at/once")
        assert worker_of(client) not in {b"", blocked}


def test_a_worker_that_has_ended_counts_no_more(conf: Conf) -> None:
    balance.CONNECTIONS[7] = 1

    conf()["child_exit"](None, SimpleNamespace(age=7))

    assert balance.CONNECTIONS[7] == 0
