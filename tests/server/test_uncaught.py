"""What the log says about errors that nothing catches."""

import json
import subprocess
import sys
from typing import Any

import pytest

# As the server does it, and then a mistake.
BEGIN = """
import sys
import threading
from app.logging import configure_logging
from app.server.uncaught import log_what_nothing_catches
from app.settings import Settings

configure_logging(Settings.model_construct())
log_what_nothing_catches()

def fail():
    raise ValueError("cannot connect to postgresql://user:hunter2@db/app")

class Fails:
    def __del__(self):
        fail()

def run(target):
    thread = threading.Thread(target=target, name="helper")
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize(
    ("mistake", "code", "level", "event"),
    [
        ("fail()", 1, "critical", "uncaught exception"),
        ("run(fail)", 0, "error", "uncaught exception in thread helper"),
        ("Fails()", 0, "error", "<function Fails.__del__"),
    ],
)
def test_it_is_one_line_of_the_log(
    mistake: str, code: int, level: str, event: str, clean_environment: dict[str, str]
) -> None:
    (line,) = run(mistake, code, clean_environment)

    assert line["level"] == level
    assert event in line["event"]
    assert line["exception"][0]["exc_value"] == "cannot connect to postgresql://user:***@db/app"
    assert line["exception"][0]["frames"][-1]["name"] == "fail"


def test_a_thread_may_end_itself(clean_environment: dict[str, str]) -> None:
    assert run("run(sys.exit)", 0, clean_environment) == []


def run(mistake: str, code: int, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Runs a program and gives all that it says."""
    command = [sys.executable, "-c", BEGIN + mistake]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert result.stdout == ""
    return [json.loads(line) for line in result.stderr.splitlines()]
