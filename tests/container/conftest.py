"""The image under test, built once from the tree as it is, and what the tests give to its containers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from certificates import TLS, make_certificate

from app import NAME
from tests.conftest import ROOT
from tests.container.engine import Container, cli, running


@pytest.fixture(scope="session")
def image(docker: None) -> Iterator[str]:  # noqa: ARG001  without an engine there is nothing to build
    tag = f"{NAME}-test:{uuid4().hex}"
    cli("build", "--quiet", "--tag", tag, ROOT)
    yield tag
    cli("rmi", tag)


@pytest.fixture(scope="module")
def network(docker: None) -> Iterator[str]:  # noqa: ARG001  as above
    """A network in which containers find each other by name, as their addresses change when they are restarted."""
    name = f"test-{uuid4().hex}"
    cli("network", "create", name)
    yield name
    cli("network", "rm", name)


@pytest.fixture(scope="module")
def service(image: str) -> Iterator[Container]:
    """The README's `docker run`, but on a port that is free."""
    with running(image, "--publish", "127.0.0.1::8000") as container:
        yield container.is_healthy()


@pytest.fixture(scope="session")
def postgresql(docker: None) -> Iterator[Container]:  # noqa: ARG001  as above
    """A database server that containers can reach, at its own address."""
    options = ["--env", "POSTGRES_PASSWORD=password", "--tmpfs", "/var/lib/postgresql"]
    ready = ["--health-cmd", "pg_isready --host=127.0.0.1", "--health-interval=1s"]
    with running("postgres:18-alpine", *options, *ready) as server:
        yield server.is_healthy()


class Database:
    """An empty database on a server in a container."""

    def __init__(self, server: Container) -> None:
        self.server = server
        self.name = f"test_{uuid4().hex}"
        self.url = f"postgresql://postgres:password@{server.ip}/{self.name}"
        server.execute("psql", "--username=postgres", f"--command=CREATE DATABASE {self.name}")

    def query(self, statement: str) -> str:
        """Runs a statement and gives what psql prints."""
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
    """A certificate and key that the container's user may read."""
    folder = tmp_path_factory.mktemp("tls")
    folder.chmod(0o755)
    return make_certificate(folder)


@pytest.fixture
def readable_path(tmp_path: Path) -> Path:
    """A folder that the container's user may read; pytest's own are for one user only."""
    tmp_path.chmod(0o755)
    return tmp_path
