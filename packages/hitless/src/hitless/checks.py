"""Detect problems that would prevent every worker from starting. Report each in one line, before the first fork."""

import os
import socket
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

Arbiter = Any  # gunicorn has no type hints
Config = Any

# Problems that `usable_pidfile` has found. At startup, that function runs before gunicorn has set up logging, so the
# `when_ready` hook logs the problems. Problems that are found at SIGHUP are not logged.
pidfile_problems = set[str]()


class StartupError(Exception):
    """Raised if the server cannot start. The message is a single line that tells the operator why."""


def check_startup(arbiter: Arbiter) -> None:
    """Check that `reuse_port` is off and that the TLS certificate and the listen addresses are usable.

    Raises:
        StartupError: The certificate or an address cannot be used, or gunicorn's `reuse_port` is on.
    """
    if arbiter.cfg.reuse_port:
        raise StartupError("reuse_port must be off: connections that wait for a worker would be lost with it")
    check_tls(arbiter.cfg)
    # Skip this check if the master was started by SIGUSR2 or by systemd's socket activation. It then inherits sockets
    # that are already bound, and binding their addresses again would fail.
    if not {"GUNICORN_PID", "LISTEN_FDS"} & os.environ.keys():
        for address in arbiter.address:
            if isinstance(address, tuple):  # a Unix socket has a path instead
                check_address(*address)


def check_address(host: str, port: int) -> None:
    """Check that the address can be bound. Without this check, gunicorn would try five times and log a dozen lines.

    Raises:
        StartupError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # Set SO_REUSEADDR, as gunicorn does, so that connections in TIME_WAIT do not prevent binding.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(f"Cannot listen on {host}:{port}: {error.strerror}") from error


def check_tls(cfg: Config) -> None:
    """Check the TLS certificate and its private key, if configured.

    Raises:
        StartupError: The certificate or the key cannot be used.
    """
    if cfg.certfile and cfg.keyfile:
        check_certificate(Path(cfg.certfile), Path(cfg.keyfile))


def check_certificate(certfile: Path, keyfile: Path) -> None:
    """Check that both files are readable, and that the key is unencrypted and belongs to the certificate.

    Raises:
        StartupError: A file cannot be read, the key is encrypted, or it does not belong to the certificate.
    """
    for file in (certfile, keyfile):
        try:
            file.read_bytes()
        except OSError as error:
            raise StartupError(f"{file} cannot be read: {error.strerror}") from error
    try:
        # With an empty password, OpenSSL rejects an encrypted key. Without a password argument, it would prompt for one
        # on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
    except ssl.SSLError as error:
        raise StartupError(f"{certfile} and {keyfile} are not a certificate and its unencrypted key") from error


def usable_pidfile(path: str) -> str | None:
    """Return the path, or None if the pidfile cannot be written or belongs to another server.

    Use the result as gunicorn's `pidfile`. With an unusable path, gunicorn would not start. With None, it runs without
    a pidfile, and the `when_ready` hook logs the problem.
    """
    other = _read_pid(path)
    # Accept a pidfile with the parent's pid: after SIGUSR2, the parent process is the server that this one replaces.
    if other and other not in {os.getpid(), os.getppid()} and _is_running(other):
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
    except (OSError, ValueError):  # if the file contains no number, gunicorn overwrites it
        return None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # on a PermissionError, it runs as another user
    return True


def load_application(arbiter: Arbiter) -> Any:  # noqa: ANN401  any ASGI application
    """Load and return the application that all workers will use. Call this in an `on_starting` hook.

    gunicorn keeps the application, so SIGHUP then loads no new code, even without `preload_app`.
    """
    return arbiter.app.wsgi()


def abort_startup(arbiter: Arbiter, message: str) -> NoReturn:
    """Log the message, remove the pidfile and exit with status 1. Call this in an `on_starting` hook."""
    arbiter.log.critical(message)
    if arbiter.pidfile:
        arbiter.pidfile.unlink()
    sys.exit(1)
