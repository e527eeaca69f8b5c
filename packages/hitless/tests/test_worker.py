"""Requests are served while a worker is stopped, replaced or stuck."""

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from certificates import TLS
from gunicorn_process import Start
from hitless.server import LAST_REQUESTS_SECONDS, LIFESPAN_SECONDS
from processes import TIMEOUT, until

GET = b"GET /pid HTTP/1.1\r\nHost: test\r\n\r\n"


def ask(client: socket.socket) -> bytes:
    """Send a request and return the response."""
    client.sendall(GET)
    response = b""
    while not response.endswith(b"0\r\n\r\n"):
        response += (part := client.recv(1000))
        assert part, "closed without a response"
    return response


def worker_of(response: bytes) -> str:
    """Return the worker's process id from a raw response, whose body is a single chunk with only this id."""
    return response.splitlines()[-3].decode()


def test_sigterm_finishes_requests_and_shuts_down_in_order(start: Start, background: ThreadPoolExecutor) -> None:
    server = start()
    running = server.get_in_background(background, "/sleep/2")

    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as idle:  # keeps its connection and sends no more requests
        idle.get("/pid")
        server.send(signal.SIGTERM)

        assert server.wait() == 0
    response = running.result()
    assert response.status_code == 200
    assert response.headers["connection"] == "close"
    assert f"worker {response.text} has shut down its lifespan" in server.log
    assert f"worker {response.text} has exited" in server.log
    assert f"worker {response.text} has run its atexit handlers" in server.log
    assert "freed" not in server.log


def test_request_longer_than_the_grace_is_cancelled(start: Start, background: ThreadPoolExecutor) -> None:
    server = start(f"--graceful-timeout={LIFESPAN_SECONDS + 1}")
    server.get_in_background(background, "/sleep/3600")

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert "1 requests exceed the grace period of 1 s and are cancelled" in server.log
    assert "has shut down its lifespan" in server.log


def test_client_that_does_not_read_its_response_does_not_delay_the_shutdown(start: Start) -> None:
    server = start(f"--graceful-timeout={LIFESPAN_SECONDS + 1}")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(server.address)
        client.send(b"GET /large/10000000 HTTP/1.1\r\nHost: test\r\n\r\n")
        server.wait_for_log("sending a large response")

        server.send(signal.SIGTERM)

        assert server.wait() == 0
    assert "has shut down its lifespan" in server.log


def test_idle_connection_is_closed_after_the_keepalive_time(start: Start) -> None:
    server = start("--keep-alive=1")
    with socket.create_connection(server.address) as client:
        ask(client)

        assert client.recv(1000) == b""


def test_sigterm_serves_a_request_that_has_begun_to_arrive(start: Start) -> None:
    server = start()
    with socket.create_connection(server.address) as client:
        client.sendall(GET[:10])
        until(lambda: json.loads(server.get("/connections").text) == [2], "the connection is accepted")
        server.send(signal.SIGTERM)
        time.sleep(3 * LAST_REQUESTS_SECONDS)  # longer than idle connections stay open

        client.sendall(GET[10:])

        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.wait() == 0


def test_max_requests_loses_no_request_on_a_kept_connection(start: Start) -> None:
    server = start("--workers=2", "--max-requests=50")
    responses: list[httpx.Response] = []

    def send_requests(client: httpx.Client) -> bool:
        responses.extend(client.get("/pid") for _ in range(50))
        return len({response.text for response in responses}) > 2

    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        until(lambda: send_requests(client), "a third worker has responded")

    assert {response.status_code for response in responses} == {200}
    assert "close" in {response.headers.get("connection") for response in responses}


# Timeouts that never expire during a test.
NO_TIMEOUT = ("--keep-alive=3600", "--graceful-timeout=10000")


@pytest.mark.parametrize("options", [["--max-requests=1"], []], ids=["max_requests", "SIGHUP"])
def test_replaced_worker_answers_the_next_request_on_an_idle_connection(start: Start, options: list[str]) -> None:
    server = start(*NO_TIMEOUT, *options)
    with socket.create_connection(server.address) as client:
        first = ask(client)
        if not options:
            server.send(signal.SIGHUP)
        server.wait_for_log("Application startup complete.", times=2)
        until(lambda: server.get("/pid").text != worker_of(first), "the worker accepts no more connections")
        time.sleep(3 * LAST_REQUESTS_SECONDS)  # longer than idle connections stay open when the whole server stops

        last = ask(client)

        assert b"connection: close" not in first
        assert b"connection: close" in last
        assert worker_of(last) == worker_of(first)
        assert client.recv(1000) == b""
    server.wait_for_log("has exited")


def test_replaced_worker_announces_the_close_in_the_response_to_an_earlier_request(start: Start) -> None:
    """Uvicorn creates new default response headers every second.

    A response uses the latest ones from before the head of its request arrived.
    """
    server = start(*NO_TIMEOUT, REQUEST_SECONDS="3600")
    old = server.get("/pid").text
    with socket.create_connection(server.address) as client:
        client.sendall(b"POST /read HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n")
        time.sleep(1.5)
        server.send(signal.SIGHUP)
        until(lambda: server.get("/pid").text != old, "the new worker accepts")
        until(lambda: len(server.get("/connections").json()) == 1, "the old worker no longer accepts")

        client.sendall(b"x")

        assert b"connection: close" in client.recv(1000)


def test_sigterm_answers_pipelined_requests(start: Start) -> None:
    server = start()
    with socket.create_connection(server.address) as client:
        client.sendall(GET.replace(b"pid", b"sleep/2") + 2 * GET)
        server.wait_for_log("a request is waiting")
        server.send(signal.SIGTERM)

        responses = b""
        while part := client.recv(1000):
            responses += part

    assert responses.count(b"HTTP/1.1 200 OK") == 3
    assert responses.count(b"connection: close") == 1


def test_replaced_worker_answers_the_next_request_after_a_response_that_had_begun(start: Start) -> None:
    """The response began before the reload, without `Connection: close`, so the client reuses the connection."""
    server = start(*NO_TIMEOUT)
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        with client.stream("GET", "/stream/3") as response:
            server.send(signal.SIGHUP)
            server.wait_for_log("Application startup complete.", times=2)
            first = response.read()
        second = client.get("/pid")

    assert "connection" not in response.headers
    assert first.removeprefix(b"begun") == second.content  # the same worker


def test_replaced_worker_waits_for_the_next_request_after_a_long_response_that_had_begun(start: Start) -> None:
    server = start("--keep-alive=10", "--graceful-timeout=3600")
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        with client.stream("GET", "/stream/15") as response:
            server.send(signal.SIGHUP)
            first = response.read()
        second = client.get("/pid")

    assert first.removeprefix(b"begun") == second.content  # the same worker
    assert second.headers["connection"] == "close"


def test_replaced_worker_closes_idle_connections_after_half_the_grace(start: Start) -> None:
    server = start("--keep-alive=3600", f"--graceful-timeout={LIFESPAN_SECONDS + 4}", "--max-requests=1")
    with socket.create_connection(server.address) as client:
        ask(client)

        assert client.recv(1000) == b""

    server.wait_for_log("has exited")


def test_sigterm_does_not_wait_for_idle_connections_of_a_replaced_worker(start: Start) -> None:
    server = start(*NO_TIMEOUT, "--max-requests=1")
    with socket.create_connection(server.address) as client:
        first = ask(client)
        until(lambda: server.get("/pid").text != worker_of(first), "the worker accepts no more connections")

        server.send(signal.SIGTERM)

        assert server.wait() == 0
        assert client.recv(1000) == b""


def test_workers_at_max_requests_are_replaced_one_after_another(start: Start) -> None:
    server = start(*NO_TIMEOUT, "--workers=2", "--max-requests=1", WARN_SECONDS="2")
    asked = set()
    with ExitStack() as idle:  # keeps connections to both workers open, so that no worker exits

        def reached_both_workers() -> bool:
            asked.add(worker_of(ask(idle.enter_context(socket.create_connection(server.address)))))
            return len(asked) >= 2

        until(reached_both_workers, "both workers are at the limit")
        server.wait_for_log("Application startup complete.", times=3)
        server.wait_for_log("no successor has started")

        assert server.log.count("forked") == 3
    server.wait_for_log("forked", times=4)


def test_worker_at_max_requests_serves_until_its_successor_accepts(start: Start) -> None:
    server = start("--max-requests=1", FORK_DELAY="3")

    first = server.get("/pid").text
    server.wait_for_log("Maximum request limit")
    second = server.get("/pid").text
    server.wait_for_log(f"worker {first} has exited")

    assert second == first
    before, _, after = server.log.partition("Maximum request limit")
    assert before.count("Application startup complete.") == 1
    assert after.index("Application startup complete.") < after.index(f"worker {first} has shut down its lifespan")


def test_worker_at_max_requests_serves_on_for_as_long_as_it_has_no_successor(start: Start) -> None:
    server = start("--max-requests=1", FORK_DELAY="5", WARN_SECONDS="2")

    first = server.get("/pid").text
    server.wait_for_log("This worker has reached max_requests, but keeps serving: no successor has started")

    assert server.get("/pid").text == first
    server.wait_for_log(f"worker {first} has exited")
    assert server.log.count("no successor has started") == 1


@pytest.mark.parametrize("moment", ["Maximum request limit", "has shut down its lifespan", "has exited"])
def test_sigterm_while_the_only_worker_is_recycled_serves_the_backlog(moment: str, start: Start) -> None:
    server = start("--max-requests=1", FORK_DELAY="1")
    assert server.get("/pid").status_code == 200
    server.wait_for_log(moment)
    with socket.create_connection(server.address) as client:
        client.sendall(GET)

        server.send(signal.SIGTERM)

        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_sigterm_while_sighup_replaces_the_only_worker_serves_the_backlog(start: Start) -> None:
    server = start(FORK_DELAY="2")
    server.send(signal.SIGHUP)
    server.wait_for_log("has exited")
    with socket.create_connection(server.address) as client:
        client.sendall(GET)

        server.send(signal.SIGTERM)

        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_worker_that_finishes_a_request_sends_heartbeats(start: Start, background: ThreadPoolExecutor) -> None:
    server = start("--timeout=2")
    running = server.get_in_background(background, "/sleep/6")

    os.kill(int(server.get("/pid").text), signal.SIGTERM)

    assert running.result().status_code == 200
    assert "WORKER TIMEOUT" not in server.log


def test_stuck_worker_logs_its_stack_and_is_replaced(start: Start, background: ThreadPoolExecutor) -> None:
    server = start("--timeout=2")
    running = background.submit(server.get, "/block/3600")

    server.wait_for_log("Application startup complete.", times=2)

    assert isinstance(running.exception(), httpx.RemoteProtocolError)
    assert "time.sleep(float(arguments[0]))" in server.log
    assert server.get("/pid").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_sigint_and_sigquit_stop_at_once(number: signal.Signals, start: Start, background: ThreadPoolExecutor) -> None:
    server = start("--graceful-timeout=3600")
    running = server.get_in_background(background, "/sleep/3600")

    server.send(number)

    assert server.wait() == 0
    assert isinstance(running.exception(), httpx.RemoteProtocolError)


def test_sigterm_stops_a_worker_that_was_just_forked(launch: Start) -> None:
    server = launch("--graceful-timeout=2", FORK_DELAY="3600")
    server.wait_for_log("forked")

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert "Handling signal: term" not in server.log  # would start the graceful timeout again


def test_startup_that_hangs_delays_sigterm_no_longer_than_the_graceful_timeout(launch: Start) -> None:
    server = launch("--graceful-timeout=2", STARTUP_HANGS="yes")
    server.wait_for_log("Waiting for application startup.")

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert "Handling signal: term" not in server.log  # would start the graceful timeout again


def test_startup_failure_stops_the_server(launch: Start) -> None:
    server = launch(STARTUP_FAILS="yes")

    assert server.wait() == 3
    assert "the startup has failed" in server.log
    assert "Traceback" not in server.log


def test_lifespan_shutdown_that_hangs_is_killed(start: Start) -> None:
    server = start("--timeout=2", f"--graceful-timeout={LIFESPAN_SECONDS + 1}", SHUTDOWN_HANGS="yes")

    os.kill(int(server.get("/pid").text), signal.SIGTERM)

    server.wait_for_log("WORKER TIMEOUT")
    server.wait_for_log("Application startup complete.", times=2)


def test_worker_without_the_hooks_logs_a_warning_and_serves(gunicorn: Start) -> None:
    server = gunicorn("example_app:app", "--worker-class=hitless.Worker")
    server.wait_for_log("Application startup complete.")

    assert server.log.count("gunicorn.conf.py does not assign hitless.hooks()") == 1
    assert server.get("/pid").status_code == 200
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_worker_that_cannot_use_the_certificate_logs_one_line(gunicorn: Start, tls: TLS) -> None:
    """With the hooks, the master reports this problem first. Without them, as in this test, the worker reports it."""
    files = (f"--certfile={tls.certfile}", f"--keyfile={tls.certfile}")
    server = gunicorn("example_app:app", "--worker-class=hitless.Worker", *files)

    assert server.wait() == 3
    assert server.log.count(" are not a certificate and its unencrypted key") == 1
    assert "Traceback" not in server.log
