"""The tests pass in the development container, with PostgreSQL and Redis."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from app import NAME
from tests.conftest import GROUPS, ROOT
from tests.container.engine import run_docker
from tests.copies.repository import copy_repository

DEFINITION = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[list[str]]:
    """The arguments that every docker compose command for this test's project starts with."""
    folder = copy_repository(tmp_path / "copy") / ".devcontainer"
    files = [f"--file={folder / file}" for file in DEFINITION["dockerComposeFile"]]
    compose = ["compose", f"--project-name={NAME}-{uuid4().hex}", *files]
    yield compose
    run_docker(*compose, "down", "--volumes", "--rmi", "local")


def test_tests_pass_in_the_development_container(compose: list[str]) -> None:
    run_docker(*compose, "up", "--build", "--detach", "--wait", *DEFINITION["runServices"])

    # Omit container tests, because the development container has no Docker engine. Of the groups, run only `server`.
    # Run the selected tests on SQLite, and those with `users` in their names on PostgreSQL as well. In this test, the
    # container's user does not own the workspace, so Python cannot store bytecode there.
    pytest_command = "uv run pytest -p no:cacheprovider --ignore tests/container -k 'not postgresql or users'"
    groups = " or ".join(group for group in GROUPS if group != "server")
    script = (
        f"{DEFINITION['postCreateCommand']} && export REQUIRE_ALL_TESTS=1 PYTHONPYCACHEPREFIX=/tmp/pycache && "
        f'{pytest_command} -m "not ({groups})"'
    )
    output = run_docker(*compose, "exec", "-T", DEFINITION["service"], "sh", "-c", script)

    assert " passed in " in output
