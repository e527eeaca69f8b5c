"""Workers keep serving when the reader of standard error, for example a log driver, stalls."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
from processes import TIMEOUT, free_port, get_or_none, until

from tests.conftest import NO_LIMIT
from tests.server.conftest import GUNICORN_CONF


def test_requests_are_served_while_nobody_reads_the_log(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    environment = clean_environment | {"PORT": str(port), "WEB_CONCURRENCY": "1", "RATE_LIMIT": NO_LIMIT}
    server = subprocess.Popen(
        [Path(sys.executable).with_name("gunicorn"), "app.main:app", f"--config={GUNICORN_CONF}"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until(lambda: get_or_none(f"{url}/health/live"), "the server responds")
        with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
            statuses = {client.get("/nothing").status_code for _ in range(1000)}  # log more than a pipe can buffer
        server.terminate()
        _, log = server.communicate(timeout=TIMEOUT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)

    assert statuses == {404}
    assert server.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert any(event.endswith(" log lines were dropped because standard error was not read") for event in events)
