"""The commands in docs/accounts.md work. The log shows the emails, so no mail server is needed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import TIMEOUT, free_port, get_or_none, until

from app import PREFIX
from tests.pages import command


@pytest.fixture
def server(tmp_path: Path, clean_environment: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """The URL of a service with default settings, and the path of its log."""
    port, log = free_port(), tmp_path / "service.log"
    script = command("serve-with-log").replace("uv run uvicorn", f"exec {sys.executable} -m uvicorn --port={port}")
    process = subprocess.Popen(["bash", "-euc", script], cwd=tmp_path, env=clean_environment)
    until(lambda: get_or_none(f"http://127.0.0.1:{port}{PREFIX}/health"), "the service responds")
    yield f"http://127.0.0.1:{port}", log
    process.terminate()
    process.wait(timeout=TIMEOUT)


def test_account_is_recovered_with_curl(server: tuple[str, Path]) -> None:
    url, log = server
    session = command("curl-accounts").replace("http://127.0.0.1:8000", url).replace("service.log", str(log))
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    script = "\necho; echo ---\n".join(step for step, _ in steps)

    result = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, timeout=10 * TIMEOUT)

    outputs = result.stdout.split("---\n")
    assert len(outputs) == len(steps)
    for (step, expected), output in zip(steps, outputs, strict=True):
        pattern = ".+".join(map(re.escape, expected.strip().split("…")))
        assert re.fullmatch(pattern, output.strip()), f"$ {step}\n{output}"
