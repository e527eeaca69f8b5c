"""Copy the repository, so that tests can change it, and run commands in the copy."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from availability import REQUIRE_ALL

from tests.conftest import ROOT
from tests.pages import command

_UNVERSIONED = shutil.ignore_patterns(
    ".git", ".venv", ".uv", ".env", "data", ".*_cache", ".coverage*", "__pycache__", "node_modules"
)

CHECKS = command("lint").strip() + " && pytest"


def copy_repository(folder: Path) -> Path:
    """Copy the working tree to `folder`, without files that Git ignores except mypy's cache."""
    shutil.copytree(ROOT, folder, ignore=_UNVERSIONED)
    if (cache := ROOT / ".mypy_cache").exists():  # makes mypy half a minute faster
        shutil.copytree(cache, folder / cache.name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files that a commit in the folder would contain, as a map from path to contents."""
    copied = shutil.copytree(folder, folder.with_name(f"{folder.name}-committed"), ignore=_UNVERSIONED)
    found = {str(path.relative_to(copied)): path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    shutil.rmtree(copied)
    return found


def run(folder: Path, script: str, *, stdin: str = "", tests: str = "", database_url: str = "") -> str:
    """Run a documented command in a copy of the repository, with this environment's packages, and return its output.

    Tests in the copy cannot use Docker.

    Args:
        folder: The folder of the copy.
        script: The command. `uv run` is removed from it.
        stdin: The standard input.
        tests: An expression for `pytest -k` that selects the tests to run. If REQUIRE_ALL_TESTS is set, all tests run.
        database_url: The URL of a PostgreSQL server for the tests. Without it, the tests run only on SQLite.
    """
    options = ["-k", tests] if tests and not os.environ.get(REQUIRE_ALL) else []
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COV", "PYTEST", "PYTHON", REQUIRE_ALL, "TEST_"))
    }
    environment = inherited | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        # Import the copy's packages. Without this, Python would import the installed packages, which are this
        # repository's.
        "PYTHONPATH": os.pathsep.join(map(str, [folder, *folder.glob("packages/*/src")])),
        "PYTEST_ADDOPTS": shlex.join(options),
        "DOCKER_HOST": f"unix://{folder}/no-docker",
        **({"TEST_DATABASE_URL": database_url} if database_url else {}),
    }
    result = subprocess.run(
        ["bash", "-euc", script.replace("uv run scripts", "python scripts").replace("uv run ", "")],
        cwd=folder,
        env=environment,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1800,
    )
    assert result.returncode == 0, f"$ {script}\n{result.stdout}"
    return result.stdout
