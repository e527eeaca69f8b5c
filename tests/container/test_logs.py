"""What the log of a container is made of, whatever goes wrong: one JSON object a line, with no secret in it."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from processes import PATIENCE, until

from tests.container.engine import Container, json_lines, running
from tests.container.service import options

MISTAKES = [f"--volume={Path(__file__).with_name('mistakes.py')}:/app/mistakes.py:ro"]


@pytest.fixture(scope="module")
def faulty(image: str) -> Iterator[Container]:
    """The service with mistakes."""
    settings = options(PYTHONWARNINGS="default")
    with running(image, *MISTAKES, *settings, command=("gunicorn", "mistakes:app", "-c", "gunicorn.conf.py")) as it:
        yield it.is_healthy()


@pytest.mark.parametrize(
    ("mistake", "level", "event"),
    [
        ("an error in a route", "error", "unhandled exception"),
        ("an error in a task", "error", "Task exception was never retrieved"),
        ("an error in a thread", "error", "uncaught exception in thread"),
        ("an error in __del__", "error", "Exception ignored"),
        ("a warning", "warning", "DeprecationWarning: no longer use"),
        ("a crash in C", "warning", "was sent SIGSEGV"),
        ("an exit", "error", "exited with code 7"),
    ],
)
def test_a_mistake_is_one_line(faulty: Container, mistake: str, level: str, event: str) -> None:
    try:
        httpx.get(f"http://{faulty.ip}:8000/mistakes/{mistake}", timeout=PATIENCE)
    except httpx.TransportError:
        assert "crash" in mistake or "exit" in mistake

    line = until(lambda: next((line for line in json_lines(faulty.log) if event in line["event"]), None), event)
    assert line["level"] == level
    assert "hunter2" not in faulty.log
    assert ("exception" in line) == mistake.startswith("an error")


def test_what_is_wrong_with_the_program_itself_is_one_line(image: str) -> None:
    with running(image, command=("gunicorn", "no_such_module:app", "-c", "gunicorn.conf.py")) as container:
        assert container.ends() == 1

        *_, last = json_lines(container.log)
        assert (last["level"], last["event"]) == ("critical", "uncaught exception")
        assert last["exception"][0]["exc_value"] == "No module named 'no_such_module'"


def test_what_clients_do_wrong_is_one_line(faulty: Container) -> None:
    with httpx.Client(timeout=PATIENCE) as client, pytest.raises(httpx.HTTPError):
        client.get(f"https://{faulty.ip}:8000/")  # TLS where there is none

    until(lambda: re.search("Invalid HTTP request received", faulty.log), "it is said")
    assert json_lines(faulty.log)
