"""What would keep every worker from starting, found once and said in one line, before any is forked."""

import socket
import ssl
from pathlib import Path

from sqlalchemy import text

from app.database import DATABASE_ERRORS, create_engine
from app.errors import StartupError
from app.settings import DatabaseSettings

# What is left for those who are no superusers. The second setting came with PostgreSQL 16.
_ALLOWED_CONNECTIONS = text("""
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0)
""")


def check_address(host: str, port: int) -> None:
    """Finds out whether the address is free; gunicorn would try five times and write a dozen lines.

    Raises:
        StartupError: it is not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As gunicorn does it: connections that linger from before are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(f"Cannot listen on {host}:{port}: {error.strerror}") from error


def check_certificate(certfile: Path, keyfile: Path) -> None:
    """Finds out whether the two can be read and belong together.

    Raises:
        StartupError: they do not.
    """
    for variable, file in ("SSL_CERTFILE", certfile), ("SSL_KEYFILE", keyfile):
        try:
            file.read_bytes()
        except OSError as error:
            raise StartupError(f"{variable}: {file} cannot be read: {error.strerror}") from error
    try:
        # The empty password makes an encrypted key an error; with none at all OpenSSL would ask on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
    except ssl.SSLError as error:
        raise StartupError("SSL_CERTFILE and SSL_KEYFILE do not hold a certificate and its unencrypted key") from error


async def check_connections(settings: DatabaseSettings, workers: int) -> str | None:
    """Finds out whether the database allows as many connections as the workers may open; if not, gives the advice.

    There may be one worker more, as each is replaced before it leaves; after a SIGHUP, for a moment, twice as many. The
    database allows them to all its clients together, so only what cannot work even alone is found here.

    Raises:
        StartupError: the database is out of reach.
    """
    if settings.is_sqlite:
        return None
    engine = create_engine(settings)
    try:
        async with engine.connect() as connection:
            allowed: int = (await connection.execute(_ALLOWED_CONNECTIONS)).scalar_one()
    except DATABASE_ERRORS as error:
        raise StartupError(f"The database cannot be used: {getattr(error, 'orig', None) or error}") from error
    finally:
        await engine.dispose()
    if (wanted := (workers + 1) * settings.connections) <= allowed:
        return None
    return (
        f"{workers} workers and a successor may open {wanted} database connections, but the database allows {allowed}: "
        f"set DATABASE_POOL_SIZE to at most {max(1, allowed // (workers + 1) - 1)}, or WEB_CONCURRENCY to at most "
        f"{max(1, allowed // settings.connections - 1)}, or raise max_connections"
    )
