"""A project of docker-compose.production.yml, as on a host, and its documented commands."""

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
    """Create a project in a directory that contains the file and new secrets, and nothing else. Start nothing."""
    shutil.copy(ROOT / FILE, folder)
    network = f"10.{randrange(128, 254)}.{randrange(256)}"  # noqa: S311  probably unused by other test runs
    with compose_project(folder / FILE, WEB_PORT="0", WEB_NETWORK=network, IMAGE=image) as compose:
        # The containers' users must be able to read the secrets, whatever the administrator's umask is.
        run(compose, "umask 077\n" + command("make-secrets"))
        yield compose


def run(compose: Compose, script: str) -> str:
    """Run documented commands, and return their output."""
    return compose.run(command("compose-file") + script)


def query(compose: Compose, statement: str) -> str:
    """Run a statement, and return the output of psql."""
    psql = ("psql", "--username=app", "--dbname=app", "--tuples-only", "--no-align", "--quiet")
    return compose("exec", "-T", "db", *psql, f"--command={statement}")


def log_in(compose: Compose) -> httpx.Response:
    return httpx.post(f"{compose.url}/auth/login", json=CREDENTIALS, timeout=TIMEOUT)
