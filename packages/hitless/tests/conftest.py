"""Fixtures that run gunicorn with hitless and the example application."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from certificates import TLS, make_certificate
from gunicorn_process import Gunicorn, Start
from processes import free_port

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Start]:
    """Start gunicorn in an empty directory, on a free port, with the given arguments and environment variables."""
    servers = []

    def start(*arguments: str, **variables: str) -> Gunicorn:
        environment = os.environ | {"PYTHONPATH": str(HERE)} | variables
        servers.append(Gunicorn(tmp_path, environment, free_port(), list(arguments)))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def launch(gunicorn: Start) -> Start:
    """Start the example application on `hitless.Worker`, and return at once."""
    return partial(gunicorn, "example_app:app", f"--config={HERE / 'example_conf.py'}")


@pytest.fixture
def start(launch: Start) -> Start:
    """Start the example application on `hitless.Worker`, and wait until it accepts requests."""

    def start(*arguments: str, **variables: str) -> Gunicorn:
        server = launch(*arguments, **variables)
        server.wait_for_log("Application startup complete.")
        return server

    return start


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor
