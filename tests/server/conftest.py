"""Certificates, free ports, and gunicorn as a process of its own."""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import TLS, make_certificate
from processes import PATIENCE, free_port, until

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def port() -> int:
    return free_port()


class Gunicorn:
    """A running gunicorn, with what it has written so far."""

    def __init__(self, folder: Path, environment: dict[str, str], port: int, arguments: list[str]) -> None:
        self.folder = folder
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        program = Path(sys.executable).with_name("gunicorn")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [program, f"--bind=127.0.0.1:{port}", f"--pid={folder}/pid", *arguments],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, text: str, times: int = 1) -> None:
        """Waits until the log holds a text so often."""
        until(lambda: self.log.count(text) >= times or self.process.poll() is not None, f"{text!r} in the log")
        assert self.log.count(text) >= times, self.log

    def send(self, number: signal.Signals) -> None:
        """Signals the master."""
        self.process.send_signal(number)

    def ends(self) -> int:
        """Waits for the end and gives the exit code."""
        return self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        """Leaves no process behind."""
        with contextlib.suppress(ProcessLookupError):  # most have ended by then
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def gunicorn(tmp_path: Path, clean_environment: dict[str, str], port: int) -> Iterator[Callable[..., Gunicorn]]:
    """Starts gunicorn in an empty folder, on a free port, with arguments and variables of the test's."""
    running = []

    def start(*arguments: str, **variables: str) -> Gunicorn:
        running.append(Gunicorn(tmp_path, clean_environment | variables, port, list(arguments)))
        return running[-1]

    yield start
    for process in running:
        process.kill()


Start = Callable[..., Gunicorn]


IMPATIENT = Path(__file__).with_name("impatient_conf.py")


@pytest.fixture
def impatient(gunicorn: Start) -> Iterator[Start]:
    """Runs the whole service in one worker, on SQLite where no other database is named, until the test is over."""
    running = []

    def start(app: str = "app.main:app", **variables: str) -> Gunicorn:
        running.append(gunicorn(app, f"--config={IMPATIENT}", **{"WEB_CONCURRENCY": "1"} | variables))
        running[-1].says("Application startup complete.")
        return running[-1]

    yield start
    for server in running:
        server.send(signal.SIGTERM)
        assert server.ends() == 0


@pytest.fixture
def begin(gunicorn: Start) -> Start:
    """Runs the small application of `asgi.py` on our worker class."""
    return partial(gunicorn, "tests.server.asgi:app", f"--config={Path(__file__).with_name('small_conf.py')}")


@pytest.fixture
def start(begin: Start) -> Start:
    """The same, until it answers."""

    def start(*arguments: str, **variables: str) -> Gunicorn:
        server = begin(*arguments, **variables)
        server.says("Application startup complete.")
        return server

    return start


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def get(server: Gunicorn, path: str) -> httpx.Response:
    return httpx.get(server.url + path, timeout=PATIENCE)


def ask(background: ThreadPoolExecutor, server: Gunicorn, path: str) -> Future[httpx.Response]:
    """Sends a request, and returns when the worker has begun with it."""
    answer = background.submit(get, server, path)
    server.says("a request is waiting")
    return answer


Conf = Callable[..., dict[str, Any]]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conf:
    """Gives the settings in gunicorn.conf.py under an environment."""

    def conf(**variables: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        for name in SETTINGS_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for module, hook in (sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"):
            monkeypatch.setattr(module, hook, getattr(module, hook))  # puts it back in the end
        return runpy.run_path(f"{ROOT}/gunicorn.conf.py")

    return conf
