"""What would keep every worker from starting, found once and said in one line, before any is forked."""

import socket
import ssl
from pathlib import Path

from app.errors import StartupError


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
