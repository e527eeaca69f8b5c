"""The commands in the README and other pages work for a new developer with a fresh copy of the repository."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from availability import cannot_run
from processes import free_port

from app import PREFIX
from tests.conftest import ROOT
from tests.copies.repository import copy_repository
from tests.pages import command

# This command puts uv on PATH, so it must run before every other command, in the same shell.
WITH_UV = command("install-uv")
# The timeout is far longer than needed, so that the tests do not fail on slow machines.
MINUTES = 10


@pytest.fixture(scope="module")
def fresh_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that a clone of the repository would contain."""
    return copy_repository(tmp_path_factory.mktemp("clone") / "app")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of a new developer. The virtual environment of these tests is not on PATH."""
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if ".venv" not in part)
    kept = {
        name: value for name, value in os.environ.items() if name in {"HOME", "LANG"} or "PIP" in name or "SSL" in name
    }
    environment = kept | {"PATH": path}
    # Skip the tests if no package index can be reached, because the commands install packages.
    download = ["python3", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", "uv"]
    folder = tmp_path_factory.mktemp("index")
    if subprocess.run(download, cwd=folder, env=environment, capture_output=True, check=False, timeout=120).returncode:
        cannot_run("the documented commands: no package index can be reached")
    return environment


@pytest.fixture(scope="module")
def server(fresh_copy: Path, environment: dict[str, str]) -> Iterator[str]:
    """The URL of the development server."""
    port = str(free_port())
    log = fresh_copy.parent / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euc", WITH_UV + command("serve").strip() + f" --port {port}"],
            cwd=fresh_copy,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: httpx.get(f"{url}{PREFIX}/health/live").status_code == 200, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)
    assert "Traceback" not in log.read_text()


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    """Wait until the condition is true. This can take minutes, because the command may install packages first."""
    deadline = time.monotonic() + MINUTES * 60
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass  # the server is not listening yet
        time.sleep(0.2)
    pytest.fail(f"not within {MINUTES} minutes:\n{log.read_text()}")


def test_account_is_used_with_curl(server: str) -> None:
    session = command("curl").replace("127.0.0.1:8000", server.removeprefix("http://"))
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    script = "\necho; echo ---\n".join(step for step, _ in steps)

    result = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, timeout=MINUTES * 60)

    outputs = result.stdout.split("---\n")
    assert len(outputs) == len(steps)
    for (step, expected), output in zip(steps, outputs, strict=True):
        pattern = ".+".join(map(re.escape, expected.strip().split("…")))
        assert re.fullmatch(pattern, output.strip()), f"$ {step}\n{output}"


Run = Callable[..., str]


@pytest.fixture
def run(fresh_copy: Path, environment: dict[str, str]) -> Run:
    """Return a function that runs a shell script in the copy and returns its output. uv is on PATH."""

    def run(script: str, stdin: str = "") -> str:
        return subprocess.run(
            ["bash", "-euc", WITH_UV + script],
            cwd=fresh_copy,
            env=environment,
            input=stdin,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=MINUTES * 60,
        ).stdout

    return run


def test_superuser_is_created_on_the_server(server: str, run: Run) -> None:
    output = run(command("create-superuser"), "a good password\n")

    login = httpx.post(
        f"{server}{PREFIX}/auth/login", json={"email": "root@example.com", "password": "a good password"}
    )
    auth = {"Authorization": f"Bearer {login.json()['access_token']}"}
    assert httpx.get(f"{server}{PREFIX}/users/", headers=auth).status_code == 200
    assert output == "root@example.com is now a superuser, in the database at data/app.db.\n"


@pytest.mark.usefixtures("server")
def test_migration_is_created_from_the_models(run: Run, fresh_copy: Path) -> None:
    run(command("new-migration"))

    (migration,) = (fresh_copy / "app/migrations/versions").glob("*_describe_the_change.py")
    assert "pass" in migration.read_text()
    migration.unlink()


def test_api_is_recorded(run: Run, fresh_copy: Path) -> None:
    (fresh_copy / "tests/openapi.json").unlink()

    run(command("record-api"))

    assert (fresh_copy / "tests/openapi.json").read_text() == (ROOT / "tests/openapi.json").read_text()


def test_password_is_percent_encoded(run: Run) -> None:
    assert run(command("percent-encode"), "p@ss/w#rd%1:x\n") == "Password: p%40ss%2Fw%23rd%251%3Ax\n"


def test_gunicorn_serves_without_a_container(fresh_copy: Path, environment: dict[str, str], tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    script = WITH_UV + "exec " + command("gunicorn")
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euc", script],
            cwd=fresh_copy,
            env=environment | {"PORT": str(port), "WEB_CONCURRENCY": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}{PREFIX}/health/ready").status_code == 200, log)
    process.terminate()

    assert process.wait(timeout=MINUTES * 60) == 0


def test_changed_code_is_reloaded(server: str, fresh_copy: Path) -> None:
    source = fresh_copy / "app" / "main.py"
    source.write_text(source.read_text().replace("title=TITLE", 'title="Changed"'))

    def is_changed() -> bool:
        return str(httpx.get(f"{server}{PREFIX}/openapi.json").json()["info"]["title"]) == "Changed"

    wait_for(is_changed, fresh_copy.parent / "log")
