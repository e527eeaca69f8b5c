"""With libpq's TLS parameters, the service trusts the right certificates, and reports errors at startup in one line."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import pytest
import trustme
from sqlalchemy import text

from app.database import create_engine
from app.errors import StartupError
from app.settings import Settings
from app.startup import prepare_database
from tests.conftest import SECRET_KEY, make_settings
from tests.container.conftest import POSTGRESQL, POSTGRESQL_OPTIONS
from tests.container.engine import Container, run_container, run_docker
from tests.container.postgresql import authenticate, configure, psql

# If the server rejects a connection, asyncpg does not wait for its transport to close, and the garbage collector warns
# about the transport. The tests in this file ignore the warning. The garbage collector runs after each of them, because
# otherwise the warning could make a test in another file fail.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PUBLISH = "--publish=127.0.0.1::5432"  # 127.0.0.1 is the address in the certificate


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with certificates and keys for a server and for clients, and the certificates of two CAs."""
    folder = tmp_path_factory.mktemp("postgresql-tls")
    authority, other = trustme.CA(), trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    certificates = {
        "server": authority.issue_cert("127.0.0.1"),
        "expired": authority.issue_cert("127.0.0.1", not_before=yesterday - timedelta(days=1), not_after=yesterday),
        "client": authority.issue_cert("client.example", common_name="client"),
        "stranger": other.issue_cert("client.example", common_name="client"),
    }
    for name, certificate in certificates.items():
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def server(docker: str, folder: Path) -> Iterator[Container]:  # noqa: ARG001  skips the tests if there is no Docker engine
    """A server that requires TLS from all users, and a client certificate from the user `client`."""
    with run_container(POSTGRESQL, *POSTGRESQL_OPTIONS, PUBLISH, f"--volume={folder}:/tls:ro") as container:
        container.wait_until_healthy()
        # PostgreSQL requires these files to be owned by its own user.
        files = [f"/tls/{name}" for name in ("ca.pem", "server.pem", "server.key", "expired.pem", "expired.key")]
        container.execute("install", "-o", "postgres", "-m", "600", *files, "/var/lib")
        psql(container, "CREATE ROLE client LOGIN SUPERUSER")
        authenticate(container, "hostnossl all all all reject")
        authenticate(container, "hostssl all client all cert")
        use_certificate(container, "server")
        yield container


def use_certificate(server: Container, name: str) -> None:
    """Make the server use this certificate for new connections."""
    files = {f"ssl_{kind}_file": f"/var/lib/{name}.{suffix}" for kind, suffix in (("cert", "pem"), ("key", "key"))}
    configure(server, ssl="on", ssl_ca_file="/var/lib/ca.pem", **files)


class Urls:
    """Builds URLs for connecting to the server. Certificates and keys are names of files in `folder`, or `system`."""

    def __init__(self, server: Container, folder: Path) -> None:
        self.port = run_docker("port", server.name, "5432/tcp").rpartition(":")[2]
        self.folder = folder

    def __call__(self, user: str = "postgres:password", host: str = "127.0.0.1", **parameters: str) -> str:
        files = {"sslrootcert", "sslcert", "sslkey"}
        values = {
            name: str(self.folder / value) if name in files and value != "system" else value
            for name, value in parameters.items()
        }
        return f"postgresql://{user}@{host}:{self.port}/postgres?{urlencode(values)}"


@pytest.fixture
def url(server: Container, folder: Path) -> Urls:
    return Urls(server, folder)


async def describe_connection(settings: Settings) -> tuple[str, str]:
    """Connect to the database. Return the TLS version and the client certificate's subject."""
    engine = create_engine(settings)
    async with engine.connect() as connection:
        query = "SELECT version, coalesce(client_dn, '') FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        version, subject = (await connection.execute(text(query))).one()
    await engine.dispose()
    return version, subject


async def connect(url: str) -> str:
    """Run the service's startup code, connect to the database, and return the client certificate's subject."""
    settings = make_settings(database_url=url, database_migrate=True)
    await prepare_database(settings)
    version, subject = await describe_connection(settings)
    assert version == "TLSv1.3"
    return subject


async def refuse(url: str) -> str:
    """Run the service's startup code, assert that it fails, and return the reason from the error message."""
    with pytest.raises(StartupError) as caught:
        await prepare_database(make_settings(database_url=url))
    message = str(caught.value)
    assert "\n" not in message
    assert "password" not in message
    name, _, reason = message.partition(" cannot be used: ")
    assert name.startswith("The database at ")
    return reason


async def test_certificate_of_the_given_authority_is_accepted(url: Urls) -> None:
    assert await connect(url(sslmode="verify-full", sslrootcert="ca.pem")) == ""


async def test_direct_tls_is_used(url: Urls) -> None:
    assert await connect(url(sslmode="verify-full", sslrootcert="ca.pem", sslnegotiation="direct")) == ""


async def test_client_certificate_authenticates_the_user(url: Urls) -> None:
    tls = {"sslmode": "verify-full", "sslrootcert": "ca.pem", "sslcert": "client.pem", "sslkey": "client.key"}

    assert (await connect(url("client", **tls))).endswith("/CN=client")


@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
async def test_system_certificate_authorities_are_trusted(
    url: Urls, folder: Path, monkeypatch: pytest.MonkeyPatch, negotiation: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))  # replaces the system's authorities in OpenSSL
    tls = {"sslmode": "verify-full", "sslrootcert": "system", "sslnegotiation": negotiation}

    assert await connect(url(**tls, application_name=negotiation)) == ""
    subject = await connect(url("client", **tls, sslcert="client.pem", sslkey="client.key"))
    assert subject.endswith("/CN=client")


async def test_authority_unknown_to_the_system_is_refused(url: Urls) -> None:
    reason = await refuse(url(sslmode="verify-full", sslrootcert="system"))

    assert "CERTIFICATE_VERIFY_FAILED" in reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"host": "localhost", "sslrootcert": "ca.pem"}, "Hostname mismatch, certificate is not valid for 'localhost'"),
        ({"sslrootcert": "other.pem"}, "self-signed certificate in certificate chain"),
        ({"sslrootcert": "missing.pem"}, "sslrootcert cannot be read: "),
        ({"sslrootcert": "server.key"}, "no certificate or crl found"),
        ({}, '/.postgresql/root.crt" does not exist'),
        ({"user": "client", "sslrootcert": "ca.pem"}, "connection requires a valid client certificate"),
        (
            {"user": "client", "sslrootcert": "ca.pem", "sslcert": "client.pem", "sslkey": "server.key"},
            "key values mismatch",
        ),
        (
            {"user": "client", "sslrootcert": "ca.pem", "sslcert": "stranger.pem", "sslkey": "stranger.key"},
            "cannot connect to the database",  # asyncpg drops the reason, because it arrives after the handshake
        ),
        ({"user": "client", "sslrootcert": "ca.pem", "sslcert": "missing.pem"}, "sslcert cannot be read: "),
    ],
    ids=[
        "host name",
        "authority",
        "no file",
        "not a certificate",
        "no authority",
        "no client certificate",
        "key of another certificate",
        "client certificate of another authority",
        "no client certificate file",
    ],
)
async def test_untrusted_connection_is_refused_in_one_line(
    url: Urls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parameters: dict[str, str], reason: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # libpq looks for its default certificates here

    assert reason in await refuse(url(sslmode="verify-full", **parameters))


async def test_expired_certificate_is_refused_in_one_line(url: Urls, server: Container) -> None:
    use_certificate(server, "expired")
    try:
        reason = await refuse(url(sslmode="verify-full", sslrootcert="ca.pem"))
        await connect(url(sslmode="require"))
    finally:
        use_certificate(server, "server")

    assert "certificate has expired" in reason


def test_untrusted_connection_of_a_command_prints_one_line(url: Urls) -> None:
    variables = {"DATABASE_URL": url(sslmode="verify-full", sslrootcert="other.pem"), "SECRET_KEY": SECRET_KEY}
    command = [sys.executable, "-m", "app", "migrate"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)

    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "self-signed certificate in certificate chain" in result.stderr
