"""Copies of the repository, to be changed, and what runs in them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.availability import REQUIRE_ALL
from tests.conftest import ROOT

_UNVERSIONED = shutil.ignore_patterns(
    ".git", ".venv", ".uv", ".env", "data", ".*_cache", ".coverage*", "__pycache__", "node_modules"
)
# In a copy the whole suite runs, but for what drives containers or a browser, or makes further copies.
_LEFT_OUT = ["browser", "container", "test_rename.py"]

CHECKS = "ruff check . && ruff format --check . && mypy && pytest"


def copy_repository(folder: Path) -> Path:
    """Makes what a clone would hold."""
    shutil.copytree(ROOT, folder, ignore=_UNVERSIONED)
    if (cache := ROOT / ".mypy_cache").exists():  # which saves half a minute
        shutil.copytree(cache, folder / cache.name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """What a commit of it would hold, by path."""
    copied = shutil.copytree(folder, folder.with_name(f"{folder.name}-committed"), ignore=_UNVERSIONED)
    found = {str(path.relative_to(copied)): path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    shutil.rmtree(copied)
    return found


def run(folder: Path, command: str, *, stdin: str = "", tests: str = "") -> str:
    """Runs a command of the README in a copy, with the packages that are installed here instead of its own.

    Tests find no Docker, and so run on SQLite. All of them run where everything must, which takes minutes; elsewhere
    those that `tests` names, as `pytest -k` takes it.
    """
    options = ["-n4", "-q", *[f"--ignore=tests/{name}" for name in _LEFT_OUT]]
    if tests and not os.environ.get(REQUIRE_ALL):
        options += ["-k", tests]
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COV", "PYTEST", "PYTHON", REQUIRE_ALL, "TEST_"))
    }
    environment = kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(folder),
        "PYTEST_ADDOPTS": shlex.join(options),
        "DOCKER_HOST": f"unix://{folder}/no-docker",
    }
    result = subprocess.run(
        ["bash", "-euc", command.replace("uv run ", "")],
        cwd=folder,
        env=environment,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1800,
    )
    assert result.returncode == 0, f"$ {command}\n{result.stdout}"
    return result.stdout
