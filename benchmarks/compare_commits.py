"""Compare the CPU time per request before and after a change, and print a table.

    uv run python -m benchmarks.compare_commits main

The earlier commit is checked out into a temporary folder, and the dependencies in its lock file are installed. One
worker runs the code of that commit, another one the code of the working tree. They receive the same requests in turn,
so that a busy machine affects both. The printed ratio is the median of the ratios of all rounds. The benchmark needs
Linux, git, uv, Docker and `wrk`, and takes a few minutes.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
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


class Subject(NamedTuple):
    """A running service: its URL, the process id of its only worker, and a user's access token."""

    url: str
    worker: int
    token: str

    def microseconds(self, request: Request, count: int) -> float:
        """Send `count` requests, and return the worker's CPU time per request in microseconds."""
        token = "invalid" if request.status == httpx.codes.UNAUTHORIZED else self.token
        started_at = cpu_seconds(self.worker)
        send(request, count, self.url, token)
        return (cpu_seconds(self.worker) - started_at) / count * 1_000_000


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far.

    Compute the id of the process's CPU clock as `clock_getcpuclockid(3)` does, because Python does not provide this
    function for other processes. /proc/<pid>/stat is too coarse: it counts in hundredths of a second.
    """
    return time.clock_gettime(~pid << 3 | 2)


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check out a commit, and install its dependencies for this Python.

    The development dependencies are installed as well, because the working tree has them. Without them, the same code
    was measured to be 5 % faster.
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
    """Run the service from a source tree with one worker and a new database, and register a user."""
    asyncio.run(execute(server_url, f"CREATE DATABASE {database}"))
    database_url = make_url(server_url).set(database=database).render_as_string(hide_password=False)
    with servers.service(database_url, tree, DATABASE_MIGRATE="true", WEB_CONCURRENCY="1") as service:
        user = {"email": FIRST_EMAIL, "password": PASSWORD, "full_name": "Ann"}
        httpx.post(f"{service.url}/users/", json=user, timeout=servers.PATIENCE).raise_for_status()
        (worker,) = Path(f"/proc/{service.group}/task/{service.group}/children").read_text().split()
        yield Subject(service.url, int(worker), get_token(service))


def measure(old: Subject, new: Subject, rounds: int, count: int) -> dict[str, list[tuple[float, float]]]:
    """Return the old and new CPU times in microseconds, by request and round, without the first round (a warm-up)."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in REQUESTS}
    for number in range(rounds + 1):
        for name, request in REQUESTS.items():
            order = (old, new) if number % 2 else (new, old)
            measured = {subject: subject.microseconds(request, count) for subject in order}
            if number:
                pairs[name].append((measured[old], measured[new]))
    return pairs


def table(pairs: Mapping[str, list[tuple[float, float]]]) -> str:
    """Return a Markdown table of the medians."""
    lines = ["| request | old µs | new µs | ratio |", "|---|---|---|---|"]
    for name, values in pairs.items():
        old, new = map(median, zip(*values, strict=True))
        ratio = median(after / before for before, after in values)
        lines.append(f"| {name} | {old:.0f} | {new:.0f} | {ratio:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Compare a commit with the working tree, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_commits", description=__doc__)
    parser.add_argument("commit", help="the earlier commit, such as a hash or a branch")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of which the median is printed")
    parser.add_argument("--requests", type=int, default=1000, help="requests of each kind in a round")
    arguments = parser.parse_args()

    try:
        with ExitStack() as stack:
            tree = stack.enter_context(checkout(arguments.commit))
            server_url = stack.enter_context(servers.postgresql())
            old = stack.enter_context(run(tree, server_url, "old"))
            new = stack.enter_context(run(servers.ROOT, server_url, "new"))
            sys.stdout.write(table(measure(old, new, arguments.rounds, arguments.requests)))
    except subprocess.CalledProcessError as error:  # the failed program has printed the reason
        sys.exit(str(error))


if __name__ == "__main__":
    main()
