"""Run docker-compose.production.yml as a Compose project, with the commands from the documentation."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import randrange

import httpx
from processes import TIMEOUT

from tests.conftest import ROOT
from tests.container.engine import Compose, compose_project
from tests.container.service import CREDENTIALS
from tests.pages import command

FILE = "docker-compose.production.yml"


@contextmanager
def production_project(folder: Path, image: str) -> Iterator[Compose]:
    """Create a project in a directory with only the Compose file and new secrets. The caller starts it."""
    shutil.copy(ROOT / FILE, folder)
    network = f"10.{randrange(128, 254)}.{randrange(256)}"  # noqa: S311  random, so that other test runs use another network
    with compose_project(folder / FILE, WEB_PORT="0", WEB_NETWORK=network, IMAGE=image) as compose:
        # Even with the strictest umask, the containers' users must be able to read the secrets.
        run(compose, "umask 077\n" + command("make-secrets"))
        yield compose


def run(compose: Compose, script: str) -> str:
    """Run commands from the documentation, and return their output."""
    return compose.run(command("compose-file") + script)


def query(compose: Compose, statement: str) -> str:
    """Run a statement with psql, and return its output."""
    psql = ("psql", "--username=app", "--dbname=app", "--tuples-only", "--no-align", "--quiet")
    return compose("exec", "-T", "db", *psql, f"--command={statement}")


def log_in(compose: Compose) -> httpx.Response:
    return httpx.post(f"{compose.url}/auth/login", json=CREDENTIALS, timeout=TIMEOUT)
