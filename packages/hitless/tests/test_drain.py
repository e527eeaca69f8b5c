"""What happens between the SIGTERM and the end of the last worker."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gunicorn_process import Start
from hitless.drain import POLL_INTERVAL, is_draining, refuse_connections
from processes import PATIENCE, until


def test_a_server_that_was_not_told_to_end_is_not_draining() -> None:
    assert not is_draining()


def test_who_waits_in_the_queue_of_a_closing_listener_is_served_and_who_comes_later_is_refused() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as early:
        refuse_connections(listener)

        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
        assert early.recv(5) == b"hello"


AT_ONCE = pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])


@AT_ONCE
def test_a_second_signal_ends_a_server_at_once(
    second: signal.Signals, start: Start, background: ThreadPoolExecutor
) -> None:
    server = start("--graceful-timeout=3600")
    answer = server.get_in_background(background, "/wait/3600")
    server.send(signal.SIGTERM)
    server.wait_for_log("Handling signal: term")

    server.send(second)

    assert server.wait() == 0
    assert isinstance(answer.exception(), httpx.RemoteProtocolError)


@AT_ONCE
def test_a_second_signal_ends_a_server_that_is_draining_too(second: signal.Signals, start: Start) -> None:
    server = start(DRAIN_SECONDS="3600")
    server.send(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.url}/draining/now", timeout=PATIENCE).text == "True", "the drain has begun")

    server.send(second)

    assert server.wait() == 0


@AT_ONCE
def test_a_second_signal_ends_a_server_that_waits_for_a_worker_to_accept_too(
    second: signal.Signals, launch: Start
) -> None:
    server = launch("--graceful-timeout=3600", NEVER_STARTS="yes")
    server.wait_for_log("Waiting for application startup.")
    server.send(signal.SIGTERM)
    time.sleep(5 * POLL_INTERVAL)
    assert "Handling signal" not in server.log

    server.send(second)

    assert server.wait() == 0


@AT_ONCE
def test_a_server_ends_no_later_where_it_waits_for_those_that_a_sighup_has_replaced(
    second: signal.Signals, start: Start, background: ThreadPoolExecutor
) -> None:
    server = start("--graceful-timeout=3600")
    answer = server.get_in_background(background, "/wait/3600")
    server.send(signal.SIGHUP)
    server.wait_for_log("Application startup complete.", times=2)

    server.send(signal.SIGTERM)
    server.wait_for_log("ended in order")  # the new one, which has nothing to do
    server.send(second)

    assert server.wait() == 0
    assert isinstance(answer.exception(), httpx.RemoteProtocolError)


def test_for_the_drain_seconds_everything_is_served_as_before(start: Start) -> None:
    server = start(DRAIN_SECONDS="2")

    server.send(signal.SIGTERM)

    until(lambda: httpx.get(f"{server.url}/draining/now", timeout=PATIENCE).text == "True", "the drain has begun")
    assert "connection" not in httpx.get(f"{server.url}/draining/now", timeout=PATIENCE).headers
    assert server.wait() == 0
    assert "ended in order" in server.log


def test_another_master_on_the_same_sockets_can_be_connected_to_when_the_first_has_ended(start: Start) -> None:
    server = start()
    server.send(signal.SIGUSR2)
    server.wait_for_log("Application startup complete.", times=2)

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert httpx.get(f"{server.url}/draining/now", timeout=PATIENCE).text == "False"
