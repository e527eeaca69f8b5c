"""The container that an editor opens is one in which the tests pass, on PostgreSQL and Redis too."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from app import NAME
from tests.conftest import ROOT
from tests.container.engine import cli
from tests.copies import copy_repository

# What starts Docker itself, takes a browser or minutes, or copies the repository once more. Of the rest, all runs on
# SQLite, and on PostgreSQL what concerns users.
LEFT_OUT = ["container", "browser", "server/test_schemathesis.py", "test_fork.py", "test_readme.py", "test_rename.py"]
DEFINITION = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[list[str]]:
    """The beginning of a command on a project of this test's own."""
    folder = copy_repository(tmp_path / "copy") / ".devcontainer"
    files = [f"--file={folder / file}" for file in DEFINITION["dockerComposeFile"]]
    compose = ["compose", f"--project-name={NAME}-{uuid4().hex}", *files]
    yield compose
    cli(*compose, "down", "--volumes", "--rmi", "local")


def test_the_tests_pass_in_it(compose: list[str]) -> None:
    cli(*compose, "up", "--build", "--detach", "--wait", *DEFINITION["runServices"])

    ignored = " ".join(f"--ignore=tests/{name}" for name in LEFT_OUT)
    tests = f"REQUIRE_ALL_TESTS=1 uv run pytest -p no:cacheprovider -n2 -k 'not postgresql or users' {ignored}"
    said = cli(
        *compose, "exec", "-T", DEFINITION["service"], "sh", "-c", f"{DEFINITION['postCreateCommand']} && {tests}"
    )

    assert " passed in " in said
