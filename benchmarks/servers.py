"""Run the servers to measure and their databases. Each of them stops at the end of its `with` block."""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import uuid4

import httpx

from app import NAME, PREFIX
from app.settings import Settings

ROOT = Path(__file__).parent.parent
SECRET_KEY = "a key that signs the benchmark's own tokens"  # noqa: S105  of no other service
WORKERS = 2
# A rate limit that is never reached. Benchmarks measure how long it takes to count requests, not to reject them.
NO_LIMIT = "999999999/minute"
PATIENCE = 60  # seconds

_ENVIRONMENT = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}


class Server(NamedTuple):
    """A running server: its URL, the number of seconds from its start to its first response, and its process group."""

    url: str
    start_seconds: float
    group: int


@contextlib.contextmanager
def container(image: str, port: int, *options: str) -> Iterator[str]:
    """Run a container and yield its host and port.

    On Linux, the host is the container's own IP address, because a published port would route every round trip through
    Docker's proxy.
    """
    name = f"benchmark-{uuid4().hex}"
    _docker("run", "--detach", "--rm", "--name", name, "--publish", f"127.0.0.1::{port}", *options, image)
    try:
        if sys.platform == "linux":
            template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
            yield f"{_docker('inspect', '--format', template, name)}:{port}"
        else:
            yield _docker("port", name, f"{port}/tcp")
    finally:
        _docker("rm", "--force", "--volumes", name)


def parse_image(module: str, description: str | None) -> str:
    """Return the image given on the command line, or the default.

    If Docker or the image is missing, exit with a one-line error message.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", default=NAME, help="the image to measure (default: %(default)s)")
    image = str(parser.parse_args().image)
    inspect = ["docker", "image", "inspect", image]
    if not shutil.which("docker") or subprocess.run(inspect, capture_output=True, check=False).returncode:  # noqa: S603  our own words
        sys.exit(f"This needs Docker and the image: docker build -t {image} .")
    return image


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run PostgreSQL in memory, and yield the URL of its default database."""
    options = ["--env", "POSTGRES_PASSWORD=password", "--tmpfs", "/var/lib/postgresql"]
    with container("postgres:18-alpine", 5432, *options) as address:
        yield f"postgresql://postgres:password@{address}/postgres"


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()  # noqa: S603, S607


@contextlib.contextmanager
def limit(database_url: str) -> Iterator[Server]:
    """Run the minimal ASGI application in benchmarks/limit.py."""
    command = ["uvicorn", "benchmarks.limit:app", "--port={port}", f"--workers={WORKERS}", "--no-access-log"]
    with _run(command, {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY}) as server:
        yield server


@contextlib.contextmanager
def service(database_url: str, tree: Path = ROOT, wrapper: Sequence[str] = (), **variables: str) -> Iterator[Server]:
    """Run the service with its production settings, and write its log to a file.

    By default, workers are not replaced, because the cost of replacing them is measured separately. If `tree` is
    another source tree, the service runs in that tree's virtual environment. `wrapper` is prepended to the server's
    command, for example to run the server under a profiler.
    """
    environment = {
        "ENVIRONMENT": "production",
        "DATABASE_URL": database_url,
        "SECRET_KEY": SECRET_KEY,
        "ACCESS_TOKEN_MINUTES": "1440",
        "ALLOWED_HOSTS": "127.0.0.1",
        "MAIL": "off",
        "WEB_CONCURRENCY": str(WORKERS),
        "MAX_REQUESTS": "0",
        "RATE_LIMIT": NO_LIMIT,
        "RATE_LIMIT_LOGIN": NO_LIMIT,
        "RATE_LIMIT_REGISTER": NO_LIMIT,
    }
    command = ["gunicorn", "app.main:app", "--config=gunicorn.conf.py", "--bind=127.0.0.1:{port}", "--pid={folder}/pid"]
    with _run(command, environment | variables, tree, wrapper) as server:
        yield server


@contextlib.contextmanager
def _run(
    command: list[str], environment: Mapping[str, str], tree: Path = ROOT, wrapper: Sequence[str] = ()
) -> Iterator[Server]:
    """Run a server from a source tree's virtual environment on a free port, and wait until it responds."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    programs = Path(sys.executable).parent if tree == ROOT else tree / ".venv/bin"
    with TemporaryDirectory() as folder, Path(folder, "log").open("w+b") as log:
        process = subprocess.Popen(  # noqa: S603  our own commands
            [*wrapper, programs / command[0], *(argument.format(port=port, folder=folder) for argument in command[1:])],
            cwd=tree,
            env={**_ENVIRONMENT, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        url, started_at = f"http://127.0.0.1:{port}", time.monotonic()
        try:
            while not _responds(url):
                if process.poll() is not None or time.monotonic() > started_at + PATIENCE:
                    sys.exit(f"{command[0]} does not start:\n{Path(folder, 'log').read_text()}")
                time.sleep(0.01)
            yield Server(url + PREFIX, time.monotonic() - started_at, process.pid)
        finally:
            process.terminate()
            process.wait(PATIENCE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _responds(url: str) -> bool:
    try:
        return httpx.get(f"{url}{PREFIX}/health/live").is_success
    except httpx.TransportError:
        return False
