"""The shutdown of the whole server, from SIGTERM to the exit of the last worker."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gunicorn_process import Gunicorn, Start
from hitless.drain import POLL_INTERVAL, is_draining, refuse_connections
from processes import until


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
    server.wait_for_log("has shut down its lifespan")  # the new worker, which is idle
    server.send(second)

    assert server.wait() == 0
    assert isinstance(response.exception(), httpx.RemoteProtocolError)


def test_draining_server_serves_as_before(start: Start) -> None:
    server = start(DRAIN_SECONDS="2")

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
