"""Problems that would keep every worker from starting, found once before the first fork and reported in one line."""

import os
import socket
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

Arbiter = Any  # gunicorn has no type hints
Config = Any

# Found while gunicorn reads its configuration, when it cannot log yet.
pidfile_problems = set[str]()


class StartupError(Exception):
    """The server cannot start. The message is one line for the person who starts it."""


def check_startup(arbiter: Arbiter) -> None:
    """Check the certificate and the addresses.

    Raises:
        StartupError: One of them cannot be used, or gunicorn's `reuse_port` is on.
    """
    if arbiter.cfg.reuse_port:
        raise StartupError("reuse_port must be off: connections that wait for a worker would be lost with it")
    check_tls(arbiter.cfg)
    # A master that replaces another one (SIGUSR2), or that systemd starts, inherits its sockets.
    if not {"GUNICORN_PID", "LISTEN_FDS"} & os.environ.keys():
        for address in arbiter.address:
            if isinstance(address, tuple):  # otherwise a Unix socket
                check_address(*address)


def check_address(host: str, port: int) -> None:
    """Check that the address can be bound. gunicorn would try five times, and log a dozen lines.

    Raises:
        StartupError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As gunicorn does: connections in TIME_WAIT do not prevent binding.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(f"Cannot listen on {host}:{port}: {error.strerror}") from error


def check_tls(cfg: Config) -> None:
    """Check the certificate and its key, if the configuration has them.

    Raises:
        StartupError: They cannot be used.
    """
    if cfg.certfile and cfg.keyfile:
        check_certificate(Path(cfg.certfile), Path(cfg.keyfile))


def check_certificate(certfile: Path, keyfile: Path) -> None:
    """Check that both files can be read and belong together.

    Raises:
        StartupError: A file cannot be read, or they do not belong together.
    """
    for file in (certfile, keyfile):
        try:
            file.read_bytes()
        except OSError as error:
            raise StartupError(f"{file} cannot be read: {error.strerror}") from error
    try:
        # With an empty password, an encrypted key is an error. Without one, OpenSSL would ask on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
    except ssl.SSLError as error:
        raise StartupError(f"{certfile} and {keyfile} are not a certificate and its unencrypted key") from error


def usable_pidfile(path: str) -> str | None:
    """Return the path for gunicorn's `pidfile`, or None if it cannot be written or belongs to another server.

    gunicorn itself would not start. The `when_ready` hook logs the problem in one line.
    """
    other = _read_pid(path)
    # After a USR2 signal, the parent process is the server that this one replaces.
    if other not in {None, os.getpid(), os.getppid()} and Path(f"/proc/{other}").exists():
        pidfile_problems.add(f"{path} belongs to process {other}. The server runs without a pidfile.")
        return None
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent) as file:
            file.write(b"%d\n" % os.getpid())
    except OSError as error:
        pidfile_problems.add(f"{path} cannot be written: {error.strerror}. The server runs without a pidfile.")
        return None
    return path


def _read_pid(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # gunicorn overwrites a file without a number
        return None


def load_application(arbiter: Arbiter) -> Any:  # noqa: ANN401  any ASGI application
    """Load the application, once for all workers if `preload_app` is on. For `on_starting` hooks."""
    return arbiter.app.wsgi()


def abort_startup(arbiter: Arbiter, message: str) -> NoReturn:
    """Log one line, remove the pidfile and exit with status 1. For `on_starting` hooks."""
    arbiter.log.critical(message)
    if arbiter.pidfile:
        arbiter.pidfile.unlink()
    sys.exit(1)
