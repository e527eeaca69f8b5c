"""Startup problems are detected before the first worker starts, and each is reported in one line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import TLS
from example_server import ENVIRONMENT, EXAMPLE
from gunicorn_process import Start
from hitless.checks import StartupError, check_address, check_certificate, usable_pidfile
from processes import free_port

HOSTS = ["127.0.0.1", "0.0.0.0"]  # noqa: S104  the usual address in a container


@pytest.mark.parametrize("host", HOSTS)
def test_free_port_passes_and_stays_free(host: str) -> None:
    port = free_port()

    check_address(host, port)
    check_address(host, port)


@pytest.mark.parametrize("host", HOSTS)
def test_port_in_use_is_reported(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        with pytest.raises(StartupError, match=rf"^Cannot listen on {host}:{port}: Address already in use$"):
            check_address(host, port)


def test_address_of_another_machine_is_reported() -> None:
    with pytest.raises(StartupError, match=r"^Cannot listen on 2001:db8::1:8000: "):
        check_address("2001:db8::1", 8000)


def test_certificate_and_its_key_pass(tls: TLS) -> None:
    check_certificate(tls.certfile, tls.keyfile)


def test_missing_file_is_reported(tls: TLS, tmp_path: Path) -> None:
    missing = tmp_path / "nothing.pem"

    with pytest.raises(StartupError, match=rf"^{missing} cannot be read: No such file or directory$"):
        check_certificate(tls.certfile, missing)


def test_certificate_given_as_the_key_is_reported(tls: TLS) -> None:
    with pytest.raises(
        StartupError, match=rf"^{tls.certfile} and {tls.certfile} are not a certificate and its unencrypted key$"
    ):
        check_certificate(tls.certfile, tls.certfile)


def test_startup_problem_is_logged_in_one_line_and_leaves_no_pidfile(launch: Start, tls: TLS) -> None:
    server = launch(f"--certfile={tls.certfile}", f"--keyfile={tls.certfile}")

    assert server.wait() == 1
    assert server.log.count("\n") == 2  # the first line is gunicorn's "Starting gunicorn"
    assert "are not a certificate and its unencrypted key" in server.log
    assert not (server.folder / "pid").exists()


def test_reuse_port_is_refused(launch: Start) -> None:
    server = launch("--reuse-port")

    assert server.wait() == 1
    assert "reuse_port must be off" in server.log
    assert "Traceback" not in server.log


def test_address_in_use_is_logged_in_one_line(launch: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = launch(f"--bind=127.0.0.1:{listener.getsockname()[1]}")

        assert server.wait() == 1
    assert server.log.count("\n") == 2
    assert "Address already in use" in server.log


def test_pidfile_that_can_be_written_is_used(tmp_path: Path) -> None:
    assert usable_pidfile(f"{tmp_path}/pid") == f"{tmp_path}/pid"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "no number", "999999999", "{own}"])
def test_pidfile_of_no_other_server_is_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid").write_text(content.format(own=os.getpid()))

    assert usable_pidfile(f"{tmp_path}/pid") == f"{tmp_path}/pid"


def test_pidfile_of_another_process_is_logged_in_one_line_and_not_used(launch: Start, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with subprocess.Popen(["sleep", "60"]) as process:
        other.write_text(f"{process.pid}\n")

        assert usable_pidfile(str(other)) is None
        server = launch(PIDFILE=str(other))
        server.wait_for_log("Application startup complete.")
        process.terminate()

    assert server.log.count(f"{other} belongs to process {process.pid}. ") == 1
    assert server.get("/pid").status_code == 200


def test_pidfile_that_cannot_be_written_is_logged_in_one_line(launch: Start) -> None:
    server = launch(PIDFILE="/proc/pid")
    server.wait_for_log("Application startup complete.")

    assert server.log.count("/proc/pid cannot be written: ") == 1
    assert server.get("/pid").status_code == 200
    assert "Traceback" not in server.log


def test_worker_directory_that_is_missing_is_logged_and_tried_again(launch: Start) -> None:
    server = launch("--worker-tmp-dir=missing")
    server.wait_for_log("A worker cannot be started: missing doesn't exist. ", times=2)

    (server.folder / "missing").mkdir()

    server.wait_for_log("Application startup complete.")
    assert "Traceback" not in server.log


def test_startup_problem_without_a_pidfile_is_logged_in_one_line(tmp_path: Path, tls: TLS) -> None:
    arguments = [f"--certfile={tls.certfile}", f"--keyfile={tls.certfile}"]
    gunicorn = Path(sys.executable).with_name("gunicorn")

    server = subprocess.run(
        [gunicorn, *EXAMPLE, *arguments], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )

    assert server.returncode == 1
    assert server.stderr.count("\n") == 2
    assert "are not a certificate and its unencrypted key" in server.stderr


# Before faking the platform, import the standard library modules that behave differently on Windows.
IMPORT_ON_WINDOWS = """
import asyncio, logging, mmap, os, pathlib, signal, socket, ssl, sys, tempfile, threading, uuid
sys.platform = "win32"
for name in ("fcntl", "gunicorn", "resource", "termios", "uvicorn"):
    sys.modules[name] = None  # cannot be imported
import hitless
print(hitless.is_draining(), hasattr(hitless, "Worker"))
"""


def test_application_can_import_hitless_on_windows() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORT_ON_WINDOWS], capture_output=True, text=True, check=False)

    assert result.stdout == "False False\n", result.stderr
