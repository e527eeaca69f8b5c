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

    tests = "REQUIRE_ALL_TESTS=1 uv run pytest -p no:cacheprovider tests/users/test_me.py tests/health"
    said = cli(
        *compose, "exec", "-T", DEFINITION["service"], "sh", "-c", f"{DEFINITION['postCreateCommand']} && {tests}"
    )

    assert " passed in " in said
