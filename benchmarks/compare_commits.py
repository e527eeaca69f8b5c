"""Compare the cost of a request before and after a change, and print a table.

    uv run python -m benchmarks.compare_commits main

The cost is the number of processor instructions that a worker executes per request, which Valgrind counts. Unlike CPU
time, this number hardly depends on the machine or on its other work. It does not include the kernel or the database.

The earlier commit is checked out into a temporary folder, and the dependencies in its lock file are installed. The
benchmark needs Linux, git, uv, Docker, `valgrind` and `wrk`, and takes a few minutes.
"""

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
from sqlalchemy import make_url

from benchmarks import servers
from benchmarks.__main__ import FIRST_EMAIL, execute, get_token
from benchmarks.hashes import PASSWORD
from benchmarks.load import Request, send

REQUESTS = {
    "`GET /health/live`": Request("/health/live"),
    "`GET /health/ready`": Request("/health/ready"),
    "`GET /users/me`": Request("/users/me"),
    "`GET /users/me`, invalid token": Request("/users/me", status=httpx.codes.UNAUTHORIZED),
    "`PATCH /users/me`": Request("/users/me", "PATCH", '{"full_name": "Ann %d"}'),
}

# Do not count instructions until the server has started. Then `callgrind_control` enables counting.
VALGRIND = ["valgrind", "--quiet", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no"]
# Create the tables at startup. Under Valgrind, a process runs about fifty times slower, so the default timeouts might
# expire.
SETTINGS = {
    "DATABASE_MIGRATE": "true",
    "DATABASE_CONNECT_TIMEOUT": "60",
    "DATABASE_POOL_TIMEOUT": "60",
    "DATABASE_STATEMENT_TIMEOUT": "60",
}
# Number of requests to send before each measurement. They fill caches, so they are not counted.
WARM_UP = 50


class Subject(NamedTuple):
    """A service under Valgrind: its URL, its only worker's process id, a user's token, and Valgrind's output folder."""

    url: str
    worker: int
    token: str
    folder: Path

    def instructions(self, request: Request, count: int) -> float:
        """Send `count` requests, and return the number of instructions that the worker executed per request."""
        token = "invalid" if request.status == httpx.codes.UNAUTHORIZED else self.token
        send(request, WARM_UP, self.url, token)
        control("--zero", self.worker)
        send(request, count, self.url, token)
        control("--dump", self.worker)
        (dump,) = self.folder.glob(f"{self.worker}.*")
        total = re.search(r"^totals: (\d+)$", dump.read_text(), re.MULTILINE)
        dump.unlink()
        assert total, "Valgrind ends each dump with the total"  # noqa: S101  for the type checker
        return int(total[1]) / count


def control(*arguments: str | int) -> None:
    """Send a command to a process that runs under Valgrind."""
    command = ["callgrind_control", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  our own


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check out a commit in a directory, install its dependencies for the running Python version, and yield the path.

    The development dependencies are included, because they are also installed for the working tree.
    """
    with TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git, uv = ["git", "-C", str(servers.ROOT), "worktree"], ["uv", "sync", "--frozen", "--quiet"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)  # noqa: S603  our own
        try:
            # Without this variable, uv may install into the virtual environment of the working tree.
            environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(tree / ".venv")}
            subprocess.run([*uv, f"--python={sys.executable}"], cwd=tree, env=environment, check=True)  # noqa: S603  our own
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)  # noqa: S603  our own


@contextlib.contextmanager
def run(tree: Path, server_url: str, database: str) -> Iterator[Subject]:
    """Run the service from a source tree, with one worker and a new database, and register a user."""
    asyncio.run(execute(server_url, f"CREATE DATABASE {database}"))
    database_url = make_url(server_url).set(database=database).render_as_string(hide_password=False)
    with TemporaryDirectory() as folder:
        valgrind = [*VALGRIND, f"--callgrind-out-file={folder}/%p"]
        with servers.service(database_url, tree, valgrind, WEB_CONCURRENCY="1", **SETTINGS) as service:
            user = {"email": FIRST_EMAIL, "password": PASSWORD, "full_name": "Ann"}
            httpx.post(f"{service.url}/users/", json=user, timeout=servers.PATIENCE).raise_for_status()
            (worker,) = Path(f"/proc/{service.group}/task/{service.group}/children").read_text().split()
            subject = Subject(service.url, int(worker), get_token(service), Path(folder))
            control("--instr=on", subject.worker)
            yield subject


def table(costs: Mapping[str, tuple[float, float]]) -> str:
    """Return a Markdown table of the number of instructions per request, before and after the change."""
    lines = ["| request | old | new | ratio |", "|---|---|---|---|"]
    lines += [f"| {name} | {old:,.0f} | {new:,.0f} | {new / old:.3f} |" for name, (old, new) in costs.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Compare a commit with the working tree, and print the results as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_commits", description=__doc__)
    parser.add_argument("commit", help="the earlier commit, such as a hash or a branch")
    parser.add_argument("--requests", type=int, default=500, help="requests of each kind")
    arguments = parser.parse_args()

    try:
        with ExitStack() as stack:
            tree = stack.enter_context(checkout(arguments.commit))
            server_url = stack.enter_context(servers.postgresql())
            old = stack.enter_context(run(tree, server_url, "old"))
            new = stack.enter_context(run(servers.ROOT, server_url, "new"))
            costs = {
                name: (old.instructions(request, arguments.requests), new.instructions(request, arguments.requests))
                for name, request in REQUESTS.items()
            }
            sys.stdout.write(table(costs))
    except FileNotFoundError as error:  # a program is not installed
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:  # most programs have printed the reason
        sys.exit(f"{error}\n{error.stderr or ''}")


if __name__ == "__main__":
    main()
