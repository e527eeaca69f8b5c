"""Thousands of generated requests get only documented responses, and never a 5xx."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import pytest
from availability import REQUIRE_ALL
from gunicorn_process import Gunicorn, Start

from app import PREFIX
from tests.conftest import NO_LIMIT, RATE_LIMITS, SECRET_KEY

pytestmark = pytest.mark.attack

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")
MINUTES = 30
QUIET_SECONDS = 300
ALL = ".*"
# Routes that do not require authentication. All other routes always return 401 to anonymous callers.
PUBLIC = f"GET {PREFIX}/health.*|POST {PREFIX}/auth/.*|POST {PREFIX}/users/"


class Run(NamedTuple):
    """A schemathesis run: caller's role, route pattern, number of examples to generate, and minimum number of cases."""

    caller: str
    routes: str = ALL
    examples: int = 5
    minimum_cases: int = 300


RUNS = {
    "anonymous": Run("anonymous"),
    "anonymous, public routes": Run("anonymous", PUBLIC, examples=100, minimum_cases=400),
    "user": Run("user"),
    "superuser": Run("superuser"),
}


def run_schemathesis(server: Gunicorn, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run schemathesis, and return its exit code and its output.

    If schemathesis sends no request for five minutes, it is considered stuck. SIGABRT then makes it print a traceback
    and exit. This happened in about one run in 70 on Python 3.11: the garbage collector hung while it cleared a dict.
    """
    output = server.folder / "schemathesis.log"
    with (
        output.open("w") as file,
        subprocess.Popen(command, cwd=server.folder, env=environment, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        log = ""
        deadline = monotonic() + MINUTES * 60
        try:
            while process.poll() is None and log != (log := server.log) and monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(QUIET_SECONDS)
            if monotonic() > deadline:
                process.kill()  # too slow, but not stuck
        finally:
            process.send_signal(signal.SIGABRT)  # no effect if the process has exited
    return process.returncode, output.read_text()


@pytest.mark.parametrize("name", RUNS)
def test_generated_requests_are_answered_as_documented(
    name: str, start_service: Start, database_url: str, clean_environment: dict[str, str]
) -> None:
    caller, routes, examples, minimum_cases = RUNS[name]
    if database_url.startswith("postgresql"):
        if not os.environ.get(REQUIRE_ALL):
            pytest.skip(f"schemathesis on PostgreSQL, which takes minutes: {REQUIRE_ALL} is not set")
        examples, minimum_cases = max(40, 2 * examples), minimum_cases + 200
    service = {
        "DATABASE_URL": database_url,
        "SECRET_KEY": SECRET_KEY,
        "ARGON2_MEMORY_KIB": "64",
        "ARGON2_TIME_COST": "1",
        "ARGON2_PARALLELISM": "1",
    }
    limits = dict.fromkeys(map(str.upper, RATE_LIMITS), NO_LIMIT)
    server = start_service(**service, **limits, MAX_REQUESTS="0")
    command = [
        str(SCHEMATHESIS),
        f"--config-file={CONFIG}",
        "run",
        f"{server.url}{PREFIX}/openapi.json",
        "--checks=all",
        f"--max-examples={examples}",
        "--seed=1",  # same cases in every run, so that failures are reproducible
        f"--include-name-regex=^({routes})$",
    ]
    settings = json.dumps({name.lower(): value for name, value in service.items()})
    environment = clean_environment | {
        "CALLER": caller,
        "SERVICE": settings,
        "NO_COLOR": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    exit_code, output = run_schemathesis(server, command, environment)
    if exit_code == -signal.SIGABRT:
        assert server.get(PREFIX + "/health/ready").status_code == 200  # schemathesis was stuck, not the service
        print(output)  # noqa: T201  shown by `pytest -rP`
        exit_code, output = run_schemathesis(server, command, environment)
    assert exit_code == 0, f"{output}\nThe end of the server's log: {server.log[-2000:]}"
    (cases,) = re.findall(r"(\d+) generated, \1 passed", output)
    assert int(cases) > minimum_cases
    ((selected, total),) = re.findall(r"Selected: (\d+)/(\d+)\n +Tested: \1\n", output)
    lines = map(json.loads, server.log.splitlines())
    successful = {
        (line["method"], line["path"]) for line in lines if line["event"] == "request" and line["status"] < 300
    }
    if routes == ALL:
        assert selected == total
    else:
        paths = [
            "/users/",
            "/auth/login",
            "/auth/logout",
            "/auth/password-reset",
            "/auth/email-verification",
        ]
        assert successful > {("POST", PREFIX + path) for path in paths}
    if caller == "superuser":  # other callers get few responses with links
        # Schemathesis must have followed links in responses, for example from a created user to that user's URL.
        assert int(re.findall(r"API Links: +(\d+) covered", output)[0]) > 0
    assert '"level": "error"' not in server.log
    assert "Traceback" not in server.log
