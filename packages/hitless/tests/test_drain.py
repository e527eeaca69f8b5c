"""The shutdown of the whole server, from SIGTERM to the exit of the last worker."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from example_server import ENVIRONMENT, EXAMPLE
from gunicorn_process import Gunicorn, Start
from hitless.drain import POLL_INTERVAL, is_draining, refuse_connections
from processes import TIMEOUT, until


def server_is_draining(server: Gunicorn) -> bool:
    return server.get("/draining").text == "True"


def test_running_server_is_not_draining() -> None:
    assert not is_draining()


def test_refuse_connections_keeps_the_backlog_and_refuses_new_connections() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as early:
        refuse_connections(listener)

        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
        assert early.recv(5) == b"hello"


EACH_STOP_SIGNAL = pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])


@EACH_STOP_SIGNAL
def test_second_signal_during_shutdown_stops_at_once(
    second: signal.Signals, start: Start, background: ThreadPoolExecutor
) -> None:
    server = start("--graceful-timeout=3600")
    response = server.get_in_background(background, "/sleep/3600")
    server.send(signal.SIGTERM)
    server.wait_for_log("Handling signal: term")

    server.send(second)

    assert server.wait() == 0
    assert isinstance(response.exception(), httpx.RemoteProtocolError)


@EACH_STOP_SIGNAL
def test_second_signal_while_draining_stops_at_once(second: signal.Signals, start: Start) -> None:
    server = start(DRAIN_SECONDS="3600")
    server.send(signal.SIGTERM)
    until(lambda: server_is_draining(server), "the server is draining")

    server.send(second)

    assert server.wait() == 0


@EACH_STOP_SIGNAL
def test_second_signal_while_no_worker_accepts_stops_at_once(second: signal.Signals, launch: Start) -> None:
    server = launch("--graceful-timeout=3600", STARTUP_HANGS="yes")
    server.wait_for_log("Waiting for application startup.")
    server.send(signal.SIGTERM)
    time.sleep(5 * POLL_INTERVAL)
    assert "Handling signal" not in server.log

    server.send(second)

    assert server.wait() == 0


@EACH_STOP_SIGNAL
def test_second_signal_while_sighup_waits_for_old_workers_stops_at_once(
    second: signal.Signals, start: Start, background: ThreadPoolExecutor
) -> None:
    server = start("--graceful-timeout=3600")
    response = server.get_in_background(background, "/sleep/3600")
    server.send(signal.SIGHUP)
    server.wait_for_log("Application startup complete.", times=2)

    server.send(signal.SIGTERM)
    server.wait_for_log("has shut down its lifespan")  # logged by the new worker, which is idle
    server.send(second)

    assert server.wait() == 0
    assert isinstance(response.exception(), httpx.RemoteProtocolError)


def test_draining_server_serves_as_before(start: Start) -> None:
    server = start(DRAIN_SECONDS="6")

    server.send(signal.SIGTERM)

    until(lambda: server_is_draining(server), "the server is draining")
    assert "connection" not in server.get("/draining").headers
    assert server.wait() == 0
    assert "has shut down its lifespan" in server.log


def test_sigterm_after_sigusr2_leaves_the_new_master_serving(start: Start) -> None:
    server = start()
    server.send(signal.SIGUSR2)
    server.wait_for_log("Application startup complete.", times=2)

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert not server_is_draining(server)


# systemd passes sockets as file descriptors 3, 4 and so on, and sets LISTEN_FDS to the number of sockets.
SOCKET_ACTIVATION = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_sigterm_leaves_systemd_socket_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "log").open("w") as log:
        host, port = listener.getsockname()
        command = [str(Path(sys.executable).with_name("gunicorn")), *EXAMPLE]
        server = subprocess.Popen(
            [sys.executable, "-c", SOCKET_ACTIVATION, str(listener.fileno()), *command],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        try:
            assert httpx.get(f"http://{host}:{port}/pid", timeout=TIMEOUT).status_code == 200

            server.terminate()

            assert server.wait(TIMEOUT) == 0
            socket.create_connection((host, port)).close()  # not refused, so systemd could start the service again
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_unix_socket_is_served_until_the_server_stops(start: Start, tmp_path: Path) -> None:
    server = start("--bind=unix:socket")

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
        client.sendall(b"GET /pid HTTP/1.1\r\nHost: test\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.log
