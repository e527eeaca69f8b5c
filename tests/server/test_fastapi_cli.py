"""`uv run fastapi dev` serves the application, as in FastAPI's documentation."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from processes import free_port, get_or_none, until

from app import PREFIX
from tests.conftest import ROOT


def test_fastapi_dev_serves_the_application(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # its [tool.fastapi] names the application
    port = str(free_port())
    command = [str(Path(sys.executable).with_name("fastapi")), "dev", "--port", port]
    url = f"http://127.0.0.1:{port}{PREFIX}/docs"

    with subprocess.Popen(command, cwd=tmp_path, env=clean_environment) as process:
        page = until(lambda: get_or_none(url), "the server is up")
        process.send_signal(signal.SIGINT)

    assert page.status_code == 200
