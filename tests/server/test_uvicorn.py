"""`uvicorn app.main:app` serves the application, exits cleanly, and reports startup failures in one line."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import TIMEOUT, free_port, get_or_none, until

from app import PREFIX
from tests.conftest import SECRET_KEY


class Uvicorn:
    """Start `uvicorn app.main:app` as a subprocess."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment
        self.port = free_port()

    def start(self, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(self.port)],
            cwd=self.directory,
            env=self.environment | variables,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def uvicorn(tmp_path: Path, clean_environment: dict[str, str]) -> Uvicorn:
    return Uvicorn(tmp_path, clean_environment)


@pytest.mark.parametrize("secret", ["", SECRET_KEY])
def test_server_becomes_ready_and_exits_cleanly(uvicorn: Uvicorn, secret: str) -> None:
    process = uvicorn.start(SECRET_KEY=secret, LOG_FORMAT="json")
    ready = until(lambda: get_or_none(f"http://127.0.0.1:{uvicorn.port}{PREFIX}/health/ready"), "a response")

    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=TIMEOUT)

    assert ready.json() == {"status": "ready", "database": "connected"}
    assert "Application shutdown complete." in log
    assert ("SECRET_KEY is not set" in log) == (not secret)
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("variables", "status", "line"),
    [
        ({"DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x"}, 3, "The database at 127.0.0.1:1/x cannot be used"),
        (
            {"DATABASE_URL": "sqlite:////proc/none/app.db"},
            3,
            "The SQLite database at /proc/none/app.db cannot be opened",
        ),
        (
            {"DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x?channel_binding=require"},
            3,
            "asyncpg ignores channel_binding=require",
        ),
        ({"LOG_LEVEL": "loud", "PORT": "x"}, 1, "  LOG_LEVEL: "),
        ({"ENVIRONMENT": "production"}, 1, "  SECRET_KEY: must be set"),
    ],
)
def test_startup_failure_prints_one_line(uvicorn: Uvicorn, variables: dict[str, str], status: int, line: str) -> None:
    process = uvicorn.start(**variables)
    _, log = process.communicate(timeout=TIMEOUT)

    assert process.returncode == status
    assert log.count(line) == 1
    assert "Traceback" not in log
    assert "hunter2" not in log


def test_port_in_use_prints_one_line(uvicorn: Uvicorn) -> None:
    with socket.create_server(("127.0.0.1", uvicorn.port)):
        process = uvicorn.start()
        _, log = process.communicate(timeout=TIMEOUT)

    assert process.returncode == 3
    assert log.count("address already in use") == 1
    assert "Traceback" not in log
