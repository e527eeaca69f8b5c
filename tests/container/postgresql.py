"""PostgreSQL servers in containers: change settings at runtime, and run and promote standbys."""

from collections.abc import Iterator
from contextlib import contextmanager

from processes import until

from tests.container.conftest import POSTGRESQL, POSTGRESQL_OPTIONS
from tests.container.engine import Container, run_container

# A script that copies the primary and starts a standby from the copy. The copy is in /tmp, outside the image's volume.
STANDBY = """
until pg_basebackup --pgdata=/tmp/standby --write-recovery-conf --checkpoint=fast \
    --dbname="host=$PRIMARY user=postgres password=password application_name=standby"
do rm -rf /tmp/standby; sleep 0.1; done
exec postgres -D /tmp/standby -c "listen_addresses=*" -c wal_receiver_status_interval=1 "$@"
"""


def psql(server: Container, statement: str, database: str = "postgres") -> str:
    """Run a statement with psql, and return its output."""
    command = ("psql", "--username=postgres", f"--dbname={database}", "--tuples-only", "--no-align")
    return server.execute(*command, f"--command={statement}")


def configure(server: Container, **settings: str) -> None:
    """Change settings of a running server, and wait until they apply to new connections."""
    for name, value in settings.items():
        psql(server, f"ALTER SYSTEM SET {name} = '{value}'")
    psql(server, "SELECT pg_reload_conf()")
    for name, value in settings.items():
        until(lambda name=name, value=value: psql(server, f"SHOW {name}") == value, f"{name} is {value}")  # type: ignore[misc]


def authenticate(server: Container, rule: str) -> None:
    """Insert a rule at the top of pg_hba.conf. It takes effect on the next call to `configure`."""
    server.execute("sed", "-i", f"1i {rule}", psql(server, "SHOW hba_file"))


@contextmanager
def run_primary(network: str, *options: str) -> Iterator[Container]:
    """Run a server that allows replication."""
    with run_container(POSTGRESQL, f"--network={network}", *POSTGRESQL_OPTIONS, *options) as server:
        server.wait_until_healthy()
        authenticate(server, "host replication all all scram-sha-256")
        configure(server, wal_keep_size="64MB")
        yield server


@contextmanager
def run_standby(primary: Container, network: str, *settings: str) -> Iterator[Container]:
    """Run a standby of the primary. It may still be starting when the `with` block begins."""
    options = (f"--network={network}", f"--env=PRIMARY={primary.name}", "--user=postgres", "--entrypoint=sh")
    command = ["-c", STANDBY, "sh", *(option for setting in settings for option in ("-c", setting))]
    with run_container(POSTGRESQL, *options, *POSTGRESQL_OPTIONS, command=command) as server:
        yield server


def promote(standby: Container) -> None:
    """Promote a standby, and wait until it is a primary."""
    psql(standby, "SELECT pg_promote()")
