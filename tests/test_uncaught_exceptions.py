"""Uncaught exceptions are logged in the same format as all other lines."""

import json
import subprocess
import sys
from typing import Any

import pytest

# This code configures logging as the server does, and defines functions that fail.
SETUP = """
import sys
import threading
from app.logging import configure_logging, log_uncaught_exceptions
from app.settings import Settings

configure_logging(Settings.model_construct())
log_uncaught_exceptions()

def fail():
    raise ValueError("cannot connect to postgresql://user:hunter2@db/app")

class FailsWhenFreed:
    def __del__(self):
        fail()

def run_in_thread(target):
    thread = threading.Thread(target=target, name="helper")
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize(
    ("code", "exit_code", "level", "event"),
    [
        ("fail()", 1, "critical", "uncaught exception"),
        ("run_in_thread(fail)", 0, "error", "uncaught exception in thread helper"),
        ("FailsWhenFreed()", 0, "error", "<function FailsWhenFreed.__del__"),
    ],
)
def test_uncaught_exception_is_logged_in_one_line(
    code: str, exit_code: int, level: str, event: str, clean_environment: dict[str, str]
) -> None:
    (line,) = run(code, exit_code, clean_environment)

    assert line["level"] == level
    assert event in line["event"]
    assert line["exception"][0]["exc_value"] == "cannot connect to postgresql://user:***@db/app"
    assert line["exception"][0]["frames"][-1]["name"] == "fail"


def test_sys_exit_in_a_thread_is_not_logged(clean_environment: dict[str, str]) -> None:
    assert run("run_in_thread(sys.exit)", 0, clean_environment) == []


def run(code: str, exit_code: int, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Run Python code, check its exit code, and return the lines that it logs, parsed as JSON."""
    command = [sys.executable, "-c", SETUP + code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == exit_code
    assert result.stdout == ""
    return [json.loads(line) for line in result.stderr.splitlines()]
