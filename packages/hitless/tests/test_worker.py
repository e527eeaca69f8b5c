"""What happens to requests when a worker is stopped, replaced or stuck."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gunicorn_process import Start
from hitless.server import LIFESPAN_SECONDS, SUCCESSOR_SECONDS
from processes import PATIENCE, until


def test_a_worker_that_is_stopped_finishes_what_it_was_asked_and_shuts_the_lifespan_down(
    start: Start, background: ThreadPoolExecutor
) -> None:
    server = start()
    answer = server.get_in_background(background, "/wait/2")

    with httpx.Client(base_url=server.url, timeout=PATIENCE) as idle:  # keeps its connection, and asks no more
        idle.get("/at/once")
        server.send(signal.SIGTERM)

        assert server.wait() == 0
    assert answer.result().status_code == 200
    assert answer.result().headers["connection"] == "close"
    assert f"worker {answer.result().text} ended in order" in server.log
    # So gunicorn's hook is called, and `atexit`.
    assert f"worker {answer.result().text} has exited" in server.log
    assert f"worker {answer.result().text} is at its end" in server.log
    assert "freed" not in server.log


def test_a_request_longer_than_the_grace_is_cut_off_and_the_lifespan_is_shut_down(
    start: Start, background: ThreadPoolExecutor
) -> None:
    server = start(f"--graceful-timeout={LIFESPAN_SECONDS + 1}")
    server.get_in_background(background, "/wait/3600")

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert "1 requests exceed the grace of 1 s and are cancelled" in server.log
    assert "ended in order" in server.log


def test_a_client_that_does_not_read_its_answer_does_not_keep_a_worker(start: Start) -> None:
    server = start(f"--graceful-timeout={LIFESPAN_SECONDS + 1}")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(server.address)
        client.send(b"GET /large/10000000 HTTP/1.1\r\nHost: test\r\n\r\n")
        server.wait_for_log("a large answer")

        server.send(signal.SIGTERM)

        assert server.wait() == 0
    assert "ended in order" in server.log


def test_a_client_that_keeps_its_connection_loses_no_request_when_workers_are_replaced(start: Start) -> None:
    server = start("--workers=2", "--max-requests=50")
    answers: list[httpx.Response] = []

    def ask_on(client: httpx.Client) -> bool:
        answers.extend(client.get("/at/once") for _ in range(50))
        return len({answer.text for answer in answers}) > 2

    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        until(lambda: ask_on(client), "the answer of a third worker")

    assert {answer.status_code for answer in answers} == {200}
    assert "close" in {answer.headers.get("connection") for answer in answers}


def test_a_worker_that_has_served_its_number_of_requests_serves_on_until_its_successor_accepts(start: Start) -> None:
    server = start("--max-requests=1", SLEEPS_AFTER_FORK="3")

    first = server.get("/at/once").text
    server.wait_for_log("Maximum request limit")
    second = server.get("/at/once").text
    server.wait_for_log(f"worker {first} has exited")

    assert second == first
    before, _, after = server.log.partition("Maximum request limit")
    assert before.count("Application startup complete.") == 1
    assert after.index("Application startup complete.") < after.index(f"worker {first} ended in order")


def test_a_worker_does_not_wait_for_a_successor_that_does_not_start(start: Start) -> None:
    server = start("--max-requests=1", SLEEPS_AFTER_FORK=str(SUCCESSOR_SECONDS + 3))

    server.get("/at/once")
    server.wait_for_log("ended in order")

    assert server.log.count("Application startup complete.") == 1


@pytest.mark.parametrize("moment", ["Maximum request limit", "ended in order", "has exited"])
def test_who_waits_while_the_only_worker_is_being_recycled_is_answered_when_the_server_ends(
    moment: str, start: Start
) -> None:
    server = start("--max-requests=1", SLEEPS_AFTER_FORK="1")
    assert server.get("/at/once").status_code == 200
    server.wait_for_log(moment)
    with socket.create_connection(server.address) as client:
        client.sendall(b"GET /at/once HTTP/1.1\r\nHost: test\r\n\r\n")

        server.send(signal.SIGTERM)

        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_who_waits_while_all_workers_are_being_replaced_is_answered_when_the_server_ends(start: Start) -> None:
    server = start(SLEEPS_AFTER_FORK="2")
    server.send(signal.SIGHUP)
    server.wait_for_log("has exited")
    with socket.create_connection(server.address) as client:
        client.sendall(b"GET /at/once HTTP/1.1\r\nHost: test\r\n\r\n")

        server.send(signal.SIGTERM)

        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_a_draining_worker_is_not_taken_for_a_stuck_one(start: Start, background: ThreadPoolExecutor) -> None:
    server = start("--timeout=2")
    answer = server.get_in_background(background, "/wait/6")

    os.kill(int(server.get("/at/once").text), signal.SIGTERM)

    assert answer.result().status_code == 200
    assert "WORKER TIMEOUT" not in server.log


def test_a_stuck_worker_says_where_and_is_replaced(start: Start, background: ThreadPoolExecutor) -> None:
    server = start("--timeout=2")
    answer = background.submit(server.get, "/block/3600")

    server.wait_for_log("Application startup complete.", times=2)

    assert isinstance(answer.exception(), httpx.RemoteProtocolError)
    assert "time.sleep(float(argument))" in server.log
    assert server.get("/at/once").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_sigint_and_sigquit_end_a_server_at_once(
    number: signal.Signals, start: Start, background: ThreadPoolExecutor
) -> None:
    server = start("--graceful-timeout=3600")
    answer = server.get_in_background(background, "/wait/3600")

    server.send(number)

    assert server.wait() == 0
    assert isinstance(answer.exception(), httpx.RemoteProtocolError)


def test_a_worker_that_was_only_just_forked_can_be_stopped(launch: Start) -> None:
    server = launch("--graceful-timeout=2", SLEEPS_AFTER_FORK="3600")
    server.wait_for_log("forked")

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert "Handling signal: term" not in server.log  # nobody is given the grace once more


def test_a_lifespan_that_never_starts_does_not_keep_a_server_longer_than_the_grace(launch: Start) -> None:
    server = launch("--graceful-timeout=2", NEVER_STARTS="yes")
    server.wait_for_log("Waiting for application startup.")

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert "Handling signal: term" not in server.log  # as above


def test_a_lifespan_that_fails_to_start_ends_the_server(launch: Start) -> None:
    server = launch(FAILS_TO_START="yes")

    assert server.wait() == 3
    assert "the lifespan does not want to" in server.log
    assert "Traceback" not in server.log


def test_a_lifespan_that_never_ends_does_not_keep_its_worker(start: Start) -> None:
    server = start("--timeout=2", f"--graceful-timeout={LIFESPAN_SECONDS + 1}", NEVER_ENDS="yes")

    os.kill(int(server.get("/at/once").text), signal.SIGTERM)

    server.wait_for_log("WORKER TIMEOUT")
    server.wait_for_log("Application startup complete.", times=2)
