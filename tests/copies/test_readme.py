"""The commands of the README, run as they stand there, on a fresh copy of the repository."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from processes import free_port

from app import NAME
from tests.availability import cannot_run
from tests.conftest import ROOT
from tests.copies.repository import copy_repository
from tests.readme import blocks, section

COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
WITH_UV = "test -x .uv/bin/uv || python3 -m pip install --quiet --target .uv uv && .uv/bin/uv run "
SERVE = f"{WITH_UV}uvicorn app.main:app --reload --reload-dir app"
USE_UV = 'export PATH="$PWD/.uv/bin:$PATH"'
MAKE_MIGRATION = 'uv run alembic revision --autogenerate -m "what changes"'
WRITE_CONTRACT = "uv run python -m app openapi > tests/openapi.json"
CREATE_SUPERUSER = "uv run python -m app create-superuser --email root@example.com --full-name Root"
MAKE_SECRETS = (
    "mkdir -m 700 secrets && (umask 022 && cd secrets && openssl rand -hex 32 > SECRET_KEY"
    " && openssl rand -hex 32 > POSTGRES_PASSWORD"
    ' && echo "postgresql://app:$(cat POSTGRES_PASSWORD)@db/app" > DATABASE_URL)'
    ' && echo "ALLOWED_HOSTS=localhost,127.0.0.1" > .env.production'
)
UP = "docker compose -f docker-compose.production.yml up --detach --wait"
BACKUP = (
    "(umask 077; docker compose -f docker-compose.production.yml exec -T db pg_dump -U app -Fc app > backup.new"
    " && mv backup.new backup)"
)
RESTORE = (
    "docker compose -f docker-compose.production.yml exec -T db pg_restore -U app -d app --clean --if-exists"
    " --single-transaction < backup"
)
RECREATE = f"{UP} --force-recreate web"
# Where each command of the README is run, besides those that are run here.
ELSEWHERE = {
    f"{WITH_UV}pytest": ".ci/run",
    "docker compose up --build": "tests/container/test_compose.py",
    f"docker build -t {NAME} . && docker run --rm -p 127.0.0.1:8000:8000 {NAME}": "tests/container/conftest.py",
    "uv run scripts/rename.py": "tests/test_rename.py",
    "uv run python -m app migrate": "tests/test_fork.py",
    'uv run alembic revision --autogenerate -m "Notes" --rev-id 0003': "tests/test_fork.py",
    "uv run ruff check . && uv run ruff format --check . && uv run mypy && uv run pytest --ignore tests/container": (
        "tests/test_fork.py"
    ),
    "rm -r app/notes tests/notes": "tests/test_fork.py",
    'uv run alembic revision --autogenerate -m "No more notes" --rev-id 0004': "tests/test_fork.py",
    "uv run ruff check . && uv run ruff format --check . && uv run mypy": ".ci/run",
    "cp .env.example .env": "tests/test_docs.py",
    MAKE_SECRETS: "tests/container/test_production_compose.py",
    UP: "tests/container/test_production_compose.py",
    BACKUP: "tests/container/test_production_compose.py",
    RESTORE: "tests/container/test_production_compose.py",
    RECREATE: "tests/container/test_production_compose.py",
    "uv run gunicorn app.main:app -c gunicorn.conf.py": "tests/server/conftest.py",
    "uv run python -m benchmarks": "tests/test_benchmarks.py",  # but for the load
}


@pytest.fixture(scope="module")
def fresh_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone would hold."""
    return copy_repository(tmp_path_factory.mktemp("clone") / "app")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of this environment only what a newcomer has too: above all, not our virtual environment."""
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if ".venv" not in part)
    kept = {
        name: value for name, value in os.environ.items() if name in {"HOME", "LANG"} or "PIP" in name or "SSL" in name
    }
    environment = kept | {"PATH": path}
    # The commands install what they need, so there must be somewhere to install it from.
    command = ["python3", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", "uv"]
    folder = tmp_path_factory.mktemp("index")
    if subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, timeout=120).returncode:
        cannot_run("the README's commands: no package index can be reached")
    return environment


@pytest.fixture(scope="module")
def server(fresh_copy: Path, environment: dict[str, str]) -> Iterator[str]:
    """The URL of what the README's first command serves."""
    port = str(free_port())
    log = fresh_copy.parent / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", SERVE],
            cwd=fresh_copy,
            env=environment | {"UVICORN_PORT": port},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: httpx.get(f"{url}/docs").status_code == 200, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)
    assert "Traceback" not in log.read_text()


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    """Waits a minute at most: the time that a newcomer is promised, with what must be installed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass  # not up yet
        time.sleep(0.2)
    pytest.fail(f"waited in vain:\n{log.read_text()}")


def test_every_command_is_run_somewhere() -> None:
    here = {SERVE, USE_UV, CREATE_SUPERUSER, MAKE_MIGRATION, WRITE_CONTRACT}

    assert set(COMMANDS) == here | ELSEWHERE.keys(), "README.md has a command that no test runs, or lacks one"
    for command, place in ELSEWHERE.items():
        assert (ROOT / place).is_file(), f"{place} should run: {command}"


def test_the_whole_life_of_a_user_in_curl(server: str) -> None:
    (session,) = blocks("console", section("Use it"))
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert steps[0][0] == "api=http://127.0.0.1:8000"
    commands = [f"api={server}", *(command for command, _ in steps[1:])]

    script = "\necho; echo ---\n".join(commands)
    result = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, timeout=60)

    outputs = result.stdout.split("---\n")
    assert len(outputs) == len(steps)
    for (command, expected), output in zip(steps, outputs, strict=True):
        pattern = ".+".join(map(re.escape, expected.strip().split("…")))
        assert re.fullmatch(pattern, output.strip()), f"$ {command}\n{output}"


@pytest.fixture
def run(fresh_copy: Path, environment: dict[str, str]) -> Callable[[str, str], str]:
    """Runs a command of the README in the copy, behind the line that puts uv on the path."""

    def run(command: str, stdin: str = "") -> str:
        return subprocess.run(
            ["bash", "-euc", f"{USE_UV}\n{command}"],
            cwd=fresh_copy,
            env=environment,
            input=stdin,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    return run


def test_the_first_superuser_is_made_on_the_server(server: str, run: Callable[[str, str], str]) -> None:
    said = run(CREATE_SUPERUSER, "a good password\n")

    login = httpx.post(f"{server}/auth/login", json={"email": "root@example.com", "password": "a good password"})
    auth = {"Authorization": f"Bearer {login.json()['access_token']}"}
    assert httpx.get(f"{server}/users/", headers=auth).status_code == 200
    assert said == "root@example.com is a superuser now, in the database at data/app.db.\n"


@pytest.mark.usefixtures("server")
def test_a_migration_is_made_from_the_models(run: Callable[[str, str], str], fresh_copy: Path) -> None:
    run(MAKE_MIGRATION, "")

    (migration,) = (fresh_copy / "app/migrations/versions").glob("*_what_changes.py")
    assert "pass" in migration.read_text()
    migration.unlink()


@pytest.mark.usefixtures("server")
def test_the_contract_is_written_down(run: Callable[[str, str], str], fresh_copy: Path) -> None:
    (fresh_copy / "tests/openapi.json").unlink()

    run(WRITE_CONTRACT, "")

    assert (fresh_copy / "tests/openapi.json").read_text() == (ROOT / "tests/openapi.json").read_text()


def test_a_change_of_the_code_is_served_at_once(server: str, fresh_copy: Path) -> None:
    source = fresh_copy / "app" / "factory.py"
    source.write_text(source.read_text().replace("title=TITLE", 'title="Changed"'))

    def changed() -> bool:
        return str(httpx.get(f"{server}/openapi.json").json()["info"]["title"]) == "Changed"

    wait_for(changed, fresh_copy.parent / "log")
