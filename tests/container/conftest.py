"""Fixtures for container tests: the image, networks, databases and certificates."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from certificates import TLS, make_certificate

from tests.container.engine import Container, run_container, run_docker

MAILDEV = "maildev/maildev:2.2.1"
POSTGRESQL = "postgres:18-alpine"
POSTGRESQL_OPTIONS = [
    "--env=POSTGRES_PASSWORD=password",
    # Check over TCP, because during initialization the server already accepts connections on its Unix socket.
    "--health-cmd=pg_isready --host=127.0.0.1",
    "--health-start-period=1m",
    "--health-start-interval=200ms",
]


@pytest.fixture(scope="session")
def image(docker: str) -> str:
    """The name of the image, built from the working tree."""
    return docker


@pytest.fixture(scope="module")
def network(docker: str) -> Iterator[str]:  # noqa: ARG001  skips the tests if there is no Docker engine
    """A network on which containers can reach each other by name. A restart may change their addresses."""
    name = f"test-{uuid4().hex}"
    run_docker("network", "create", name)
    yield name
    run_docker("network", "rm", name)


@pytest.fixture(scope="session")
def postgresql(docker: str) -> Iterator[Container]:  # noqa: ARG001  as above
    """A PostgreSQL server that other containers can reach at its IP address."""
    with run_container(POSTGRESQL, *POSTGRESQL_OPTIONS, "--tmpfs=/var/lib/postgresql") as server:
        yield server.wait_until_healthy()


class Database:
    """A new, empty database on a server in a container."""

    def __init__(self, server: Container) -> None:
        self.server = server
        self.name = f"test_{uuid4().hex}"
        self.url = f"postgresql://postgres:password@{server.ip}/{self.name}"
        # The name remains valid if the server gets a new address, but it resolves only on the server's network.
        self.url_by_name = f"postgresql://postgres:password@{server.name}/{self.name}"
        server.execute("psql", "--username=postgres", f"--command=CREATE DATABASE {self.name}")

    def query(self, statement: str) -> str:
        """Run a statement with psql and return its output."""
        psql = ("psql", "--username=postgres", f"--dbname={self.name}", "--tuples-only", "--no-align")
        return self.server.execute(*psql, f"--command={statement}")


@pytest.fixture
def database(postgresql: Container) -> Database:
    return Database(postgresql)


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    """A certificate and a key that the container's user can read."""
    folder = tmp_path_factory.mktemp("tls")
    folder.chmod(0o755)
    return make_certificate(folder)


@pytest.fixture
def readable_path(tmp_path: Path) -> Path:
    """An empty directory that the container's user can read. Without chmod, only the user running pytest could."""
    tmp_path.chmod(0o755)
    return tmp_path
