"""Every line in a container's log is a JSON object without secrets, even after failures."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from processes import TIMEOUT

from app import PREFIX
from tests.container.engine import Container, run_container
from tests.container.service import run_service

FAULTY_APP = f"--volume={Path(__file__).with_name('faulty_app.py')}:/app/faulty_app.py:ro"


@pytest.fixture(scope="module")
def faulty(image: str) -> Iterator[Container]:
    """A running service with routes that trigger bugs."""
    command = ("gunicorn", "faulty_app:app", "-c", "gunicorn.conf.py")
    with run_service(image, FAULTY_APP, command=command, PYTHONWARNINGS="default") as container:
        yield container


@pytest.mark.parametrize(
    ("bug", "level", "message"),
    [
        ("error in a route", "error", "Exception in ASGI application"),
        ("error in a task", "error", "Task exception was never retrieved"),
        ("error in a thread", "error", "uncaught exception in thread"),
        ("error in __del__", "error", "Exception ignored"),
        ("warning", "warning", "DeprecationWarning: deprecated"),
        ("segmentation fault", "warning", "was sent SIGSEGV"),
        ("exit", "error", "exited with code 7"),
    ],
)
def test_bug_is_logged_in_one_line(faulty: Container, bug: str, level: str, message: str) -> None:
    try:
        httpx.get(f"http://{faulty.ip}:8000{PREFIX}/bugs/{bug}", timeout=TIMEOUT)
    except httpx.TransportError:
        assert bug in {"segmentation fault", "exit"}

    faulty.wait_for_log(message)
    line = next(line for line in faulty.log_lines if message in line["event"])
    assert line["level"] == level
    assert "hunter2" not in faulty.log
    assert ("exception" in line) == bug.startswith("error")


def test_import_error_is_logged_in_one_line(image: str) -> None:
    with run_container(image, command=("gunicorn", "no_such_module:app", "-c", "gunicorn.conf.py")) as container:
        assert container.wait_for_exit() == 1

        *_, last = container.log_lines
        assert (last["level"], last["event"]) == ("critical", "uncaught exception")
        assert last["exception"][0]["exc_value"] == "No module named 'no_such_module'"


def test_malformed_request_is_logged_in_one_line(faulty: Container) -> None:
    with httpx.Client(timeout=TIMEOUT) as client, pytest.raises(httpx.HTTPError):
        client.get(f"https://{faulty.ip}:8000/")  # a TLS handshake with a server that has no certificate

    faulty.wait_for_log("request rejected")
    (line,) = [line for line in faulty.log_lines if line["event"] == "request rejected"]
    assert line["status"] == 400
