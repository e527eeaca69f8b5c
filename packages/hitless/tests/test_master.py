"""If workers cannot be started, or the master does not respond, the running workers keep serving."""

import os
import re
import signal
import socket
from pathlib import Path

import httpx
import pytest
from certificates import TLS
from gunicorn_process import Gunicorn, Start
from processes import TIMEOUT, until

EXAMPLE_CONF = Path(__file__).with_name("example_conf.py").read_text()


def delays(server: Gunicorn) -> list[int]:
    """Return the logged delays between a failed start and the next attempt, in seconds."""
    return [int(delay) for delay in re.findall(r"The next attempt is in (\d+) s\.", server.log)]


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    """The path of a file. While it exists, no worker can start if STARTUP_FAILS_WITH or FORK_FAILS_WITH names it."""
    return tmp_path / "failing"


@pytest.mark.parametrize("options", [["--max-requests=1"], []], ids=["max_requests", "SIGHUP"])
def test_old_worker_serves_while_its_successor_fails_to_start(start: Start, failing: Path, options: list[str]) -> None:
    server = start(*options, STARTUP_FAILS_WITH=str(failing))
    failing.touch()

    old = server.get("/pid").text  # with `max_requests`, this request reaches the limit
    if not options:
        server.send(signal.SIGHUP)
    until(lambda: delays(server)[:3] == [1, 2, 4], "three starts have failed")

    assert server.get("/pid").text == old
    failing.unlink()
    server.wait_for_log(f"worker {old} has exited")
    assert server.get("/pid").status_code == 200
    assert "Traceback" not in server.log
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_successors_that_fail_at_once_are_one_attempt(start: Start, failing: Path) -> None:
    server = start("--workers=2", STARTUP_FAILS_WITH=str(failing))
    server.wait_for_log("Application startup complete.", times=2)
    failing.touch()

    for pid in re.findall(r"Started server process \[(\d+)\]", server.log):
        os.kill(int(pid), signal.SIGKILL)
    until(lambda: delays(server)[:2] == [1, 2], "two attempts have failed")

    assert server.log.count("Application startup failed. Exiting.") > 2
    failing.unlink()
    server.wait_for_log("Application startup complete.", times=4)


def test_sighup_keeps_as_many_old_workers_as_new_ones_are_missing(start: Start) -> None:
    server = start("--workers=3")
    server.wait_for_log("Application startup complete.", times=3)
    old = set(re.findall(r"Started server process \[(\d+)\]", server.log))

    server.send(signal.SIGHUP)
    for pid in old:
        server.wait_for_log(f"worker {pid} has exited")

    exits = sorted(server.log.index(f"worker {pid} has shut down its lifespan") for pid in old)
    forks, starts = (
        [match.start() for match in re.finditer(event, server.log)][3:]
        for event in ("Booting worker with pid", "Application startup complete.")
    )
    assert len(forks) == len(starts) == 3
    assert all(starts[number] < exits[number] for number in range(3))
    # The workers were replaced one after another, so there was never more than one extra worker.
    assert starts[0] < forks[1] < starts[1] < forks[2]


def test_stuck_worker_is_replaced_while_sighup_waits_for_another(start: Start) -> None:
    server = start("--timeout=2", "--graceful-timeout=3600")
    old = server.get("/pid").text
    with socket.create_connection(server.address) as waiting, socket.socket() as stuck:
        waiting.sendall(b"GET /sleep/3600 HTTP/1.1\r\nHost: test\r\n\r\n")
        server.wait_for_log("a request is waiting")
        server.send(signal.SIGHUP)
        until(lambda: server.get("/pid").text != old, "the new worker accepts")
        until(lambda: len(server.get("/connections").json()) == 1, "the old worker no longer accepts")
        stuck.connect(server.address)
        stuck.sendall(b"GET /block/3600 HTTP/1.1\r\nHost: test\r\n\r\n")

        server.wait_for_log("Application startup complete.", times=3)

        assert "time.sleep(float(arguments[0]))" in server.log
        assert server.get("/pid").status_code == 200
        assert f"worker {old} has exited" not in server.log
    os.kill(int(old), signal.SIGQUIT)
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_certificate_that_can_no_longer_be_read_is_one_line_per_attempt(start: Start, tls: TLS, tmp_path: Path) -> None:
    keyfile = tmp_path / "key.pem"
    keyfile.write_bytes(tls.keyfile.read_bytes())
    server = start("--workers=2", f"--certfile={tls.certfile}", f"--keyfile={keyfile}")
    server.wait_for_log("Application startup complete.", times=2)
    keyfile.rename(tmp_path / "elsewhere.pem")

    before = len(server.log)

    server.send(signal.SIGHUP)
    problem = f"A worker cannot be started: {keyfile} cannot be read: No such file or directory. The next attempt"
    server.wait_for_log(problem, times=3)

    lines = server.log[before:].splitlines()
    assert [line for line in lines if problem not in line and "[INFO]" not in line] == []
    assert "Booting worker" not in server.log[before:]
    url = server.url.replace("http", "https")
    assert httpx.get(f"{url}/pid", verify=tls.client, timeout=TIMEOUT).status_code == 200


def test_failed_fork_is_tried_again(start: Start, failing: Path) -> None:
    server = start(FORK_FAILS_WITH=str(failing))
    failing.touch()
    old = server.get("/pid").text

    os.kill(int(old), signal.SIGTERM)
    server.wait_for_log("A worker cannot be started: [Errno 11] Resource temporarily unavailable. ", times=2)
    failing.unlink()

    server.wait_for_log("Application startup complete.", times=2)
    assert server.get("/pid").text != old
    assert "Traceback" not in server.log


def test_master_that_does_not_respond_is_logged_once(start: Start) -> None:
    server = start("--workers=2", "--max-requests=10", WARN_SECONDS="2")
    server.wait_for_log("Application startup complete.", times=2)
    server.send(signal.SIGSTOP)
    try:
        with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
            until(lambda: client.get("/pid").is_success and "The master process has not" in server.log, "it is logged")
            responses = [client.get("/pid") for _ in range(50)]
    finally:
        server.send(signal.SIGCONT)

    assert {response.status_code for response in responses} == {200}
    assert server.log.count("The master process has not responded for 2 s: no worker is replaced") == 1
    server.wait_for_log("Application startup complete.", times=3)


def test_invalid_configuration_is_not_reloaded(gunicorn: Start, tmp_path: Path) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text(EXAMPLE_CONF)
    server = gunicorn("example_app:app", f"--config={conf}")
    server.wait_for_log("Application startup complete.")
    old = server.get("/pid").text
    conf.write_text("import sys; sys.exit(1)")

    server.send(signal.SIGHUP)
    server.wait_for_log("The configuration cannot be loaded, so nothing was reloaded")
    kept = server.get("/pid").text
    conf.write_text(EXAMPLE_CONF)
    server.send(signal.SIGHUP)
    server.wait_for_log(f"worker {old} has exited")

    assert kept == old
    assert server.get("/pid").status_code == 200


def test_error_during_a_reload_does_not_stop_the_server(gunicorn: Start, tmp_path: Path) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text(f"{EXAMPLE_CONF}def on_reload(_): raise OSError")
    server = gunicorn("example_app:app", f"--config={conf}")
    server.wait_for_log("Application startup complete.")
    old = server.get("/pid").text

    server.send(signal.SIGHUP)
    server.wait_for_log("The reload is incomplete, but the workers are replaced")
    server.wait_for_log(f"worker {old} has exited")

    assert server.get("/pid").status_code == 200
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_changed_addresses_are_not_reloaded(gunicorn: Start, tmp_path: Path) -> None:
    conf = tmp_path / "conf.py"
    # At startup, the argument `--bind` overrides the setting `bind`. The configuration file removes the argument, so
    # `bind` applies on reload.
    drop_argument = 'import sys; sys.argv[:] = [each for each in sys.argv if not each.startswith("--bind=")]'
    conf.write_text(f'{EXAMPLE_CONF}{drop_argument}; bind = "127.0.0.1:0"')
    server = gunicorn("example_app:app", f"--config={conf}")
    server.wait_for_log("Application startup complete.")
    old = server.get("/pid").text

    server.send(signal.SIGHUP)
    server.wait_for_log("Nothing was reloaded: to change the addresses (`bind`), restart the server")
    os.kill(int(old), signal.SIGTERM)
    server.wait_for_log("Application startup complete.", times=2)

    assert server.get("/pid").text != old
