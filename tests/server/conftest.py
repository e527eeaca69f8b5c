"""Fixtures that run the service on gunicorn, in a subprocess."""

import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import TLS, make_certificate
from gunicorn_process import Gunicorn, Start
from processes import free_port

from tests.conftest import ROOT

GUNICORN_CONF = ROOT / "gunicorn.conf.py"


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def gunicorn(tmp_path: Path, clean_environment: dict[str, str]) -> Iterator[Start]:
    """Return a function that starts gunicorn with the given arguments and environment variables.

    By default, gunicorn listens on a free port. The process runs in an empty directory.
    """
    servers = []

    def start(*arguments: str, port: int | None = None, **variables: str) -> Gunicorn:
        server = Gunicorn(tmp_path, clean_environment | variables, port or free_port(), list(arguments))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def start_service(gunicorn: Start) -> Iterator[Start]:
    """Return a function that starts the service with one worker, by default on SQLite. It runs until the test ends."""
    servers = []

    def start(app: str = "app.main:app", **variables: str) -> Gunicorn:
        server = gunicorn(app, f"--config={GUNICORN_CONF}", **{"WEB_CONCURRENCY": "1"} | variables)
        servers.append(server)
        server.wait_for_log("Application startup complete.")
        return server

    yield start
    for server in servers:
        server.send(signal.SIGTERM)
        assert server.wait() == 0


LoadConf = Callable[..., dict[str, Any]]


@pytest.fixture
def load_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadConf:
    """Return a function that runs gunicorn.conf.py and returns the settings that it defines.

    The arguments of the function are environment variables.
    """

    def load(**variables: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for module, hook in (sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"):
            monkeypatch.setattr(module, hook, getattr(module, hook))  # so that monkeypatch restores the hook
        return runpy.run_path(str(GUNICORN_CONF))

    return load
