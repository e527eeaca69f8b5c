"""Fixtures that run gunicorn with hitless and the example application."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from certificates import TLS, make_certificate
from example_server import ENVIRONMENT, EXAMPLE
from gunicorn_process import Gunicorn, Start
from processes import free_port


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@contextmanager
def start_in(folder: Path) -> Iterator[Start]:
    """Yield a function that starts gunicorn in a directory. Stop all servers when the `with` block ends.

    The function accepts command-line arguments and environment variables for gunicorn. Each server listens on a free
    port.
    """
    servers = []

    def start(*arguments: str, **variables: str) -> Gunicorn:
        servers.append(Gunicorn(folder, ENVIRONMENT | variables, free_port(), list(arguments)))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


def start_and_wait(launch: Start, *arguments: str, **variables: str) -> Gunicorn:
    server = launch(*arguments, **variables)
    server.wait_for_log("Application startup complete.")
    return server


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts gunicorn in an empty directory."""
    with start_in(tmp_path) as start:
        yield start


@pytest.fixture
def launch(gunicorn: Start) -> Start:
    """Return a function that starts the example application, without waiting until it accepts requests."""
    return partial(gunicorn, *EXAMPLE)


@pytest.fixture
def start(launch: Start) -> Start:
    """Return a function that starts the example application and waits until it accepts requests."""
    return partial(start_and_wait, launch)


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return a function like `start`, except that its servers run until the end of the test module."""
    with start_in(tmp_path_factory.mktemp("server")) as start:
        yield partial(start_and_wait, partial(start, *EXAMPLE))


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor
