"""gunicorn runs the application with gunicorn.conf.py, without a container."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hitless
import httpx
import pytest
from certificates import TLS
from gunicorn_process import Gunicorn, Start
from hitless.accept import SLOTS
from processes import TIMEOUT, free_port

from app import NAME, PREFIX
from tests.server.conftest import GUNICORN_CONF, LoadConf


@pytest.fixture
def start(gunicorn: Start) -> Start:
    """Return a function that starts the service with gunicorn.conf.py, by default on SQLite.

    The function does not wait until the service is ready.
    """

    def start(**variables: str) -> Gunicorn:
        return gunicorn("app.main:app", f"--config={GUNICORN_CONF}", **variables)

    return start


def test_settings_have_the_usual_values(load_conf: LoadConf) -> None:
    settings = load_conf()

    assert settings["bind"] == "0.0.0.0:8000"
    assert settings["workers"] == hitless.available_cpus().number * 2 + 1
    expected = {
        "backlog": 2048,
        "worker_connections": 1000,
        "max_requests": 1000,
        "max_requests_jitter": 100,
        "timeout": 30,
        "keepalive": 5,
        "graceful_timeout": 30,
        "accesslog": "-",
        "errorlog": "-",
        "loglevel": "info",
        "access_log_format": '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)s',
        "proc_name": NAME,
        "preload_app": True,
        "daemon": False,
        "tmp_upload_dir": None,
        "keyfile": None,
        "certfile": None,
    }
    assert {name: settings[name] for name in expected} == expected
    # `pidfile` is None if another server on this machine is using the file.
    assert settings["pidfile"] in {"/tmp/gunicorn.pid", None}  # noqa: S108  the documented path


@pytest.mark.parametrize(
    ("variables", "setting", "value"),
    [
        ({"PORT": "9000"}, "bind", "0.0.0.0:9000"),
        ({"HOST": "::"}, "bind", "[::]:8000"),
        ({"WEB_CONCURRENCY": "3"}, "workers", 3),
        ({"LOG_LEVEL": "WARNING"}, "loglevel", "warning"),
        ({"MAX_REQUESTS": "200"}, "max_requests", 200),
        ({"MAX_REQUESTS_JITTER": "20"}, "max_requests_jitter", 20),
        ({"FORWARDED_ALLOW_IPS": "10.0.0.0/8, 127.0.0.1"}, "forwarded_allow_ips", "10.0.0.0/8,127.0.0.1"),
        ({"ROOT_PATH": "/api"}, "root_path", "/api"),
        ({"SSL_KEYFILE": "key.pem", "SSL_CERTFILE": "cert.pem"}, "keyfile", "key.pem"),
        ({"SSL_KEYFILE": "key.pem", "SSL_CERTFILE": "cert.pem"}, "certfile", "cert.pem"),
    ],
)
def test_environment_variable_sets_gunicorn_setting(
    load_conf: LoadConf, variables: dict[str, str], setting: str, value: object
) -> None:
    settings = load_conf(**variables)

    assert settings[setting] == value


def test_exited_worker_is_removed_from_the_balancing(load_conf: LoadConf) -> None:
    slot = len(SLOTS) - 1
    SLOTS[slot] = 9

    load_conf()["child_exit"](None, SimpleNamespace(age=slot))

    assert SLOTS[slot] == 0


def test_service_migrates_and_uses_the_default_database(start: Start, tmp_path: Path) -> None:
    server = start(WEB_CONCURRENCY="2")
    server.wait_for_log("Application startup complete.", times=2)

    response = httpx.post(
        f"{server.url}{PREFIX}/users/",
        json={"email": "ann@example.com", "password": "correct horse battery staple", "full_name": "Ann"},
        timeout=TIMEOUT,
    )

    assert response.status_code == 201
    assert "server" not in response.headers
    with sqlite3.connect(tmp_path / "data" / "app.db") as database:
        assert database.execute("SELECT email FROM users").fetchall() == [("ann@example.com",)]


def test_every_log_line_from_start_to_stop_is_one_json_object(start: Start) -> None:
    server = start(WEB_CONCURRENCY="2", SECRET_KEY="0123456789abcdef0123456789abcdef")
    server.wait_for_log("Application startup complete.", times=2)
    server.get(PREFIX + "/users/me")

    server.send(signal.SIGTERM)

    assert server.wait() == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert {"gunicorn.error", "uvicorn.error", "app.access"} <= {line["logger"] for line in lines}
    # Ignore the warning that is logged if another server on this machine is using the pidfile.
    assert {line["level"] for line in lines if "runs without a pidfile" not in line["event"]} == {"info"}
    assert lines[-1]["event"] == "Shutting down: Master"


CPUS = hitless.available_cpus().number


@pytest.mark.parametrize(
    ("variables", "pattern"),
    [
        (
            {"WEB_CONCURRENCY": "2", "DATABASE_POOL_SIZE": "3"},
            r"2 workers \(WEB_CONCURRENCY\), at most \d+ of \d+ MiB of memory, and 12 database connections",
        ),
        ({}, rf"{CPUS * 2 + 1} workers \(2 x {CPUS} CPUs \+ 1, by the "),
    ],
)
def test_number_of_workers_and_its_source_are_logged(start: Start, variables: dict[str, str], pattern: str) -> None:
    server = start(**variables)

    server.wait_for_log(" database connections")
    assert re.search(pattern, server.log)


def test_certificate_enables_https(start: Start, tls: TLS) -> None:
    server = start(WEB_CONCURRENCY="1", SSL_CERTFILE=str(tls.certfile), SSL_KEYFILE=str(tls.keyfile))
    server.wait_for_log("Application startup complete.")

    response = httpx.get(f"{server.url.replace('http', 'https')}{PREFIX}/health", verify=tls.client, timeout=TIMEOUT)

    assert response.json() == {"status": "alive"}
    assert "Warning" not in server.log


def test_root_path_is_passed_to_the_application(start: Start) -> None:
    server = start(WEB_CONCURRENCY="1", ROOT_PATH="/api")
    server.wait_for_log("Application startup complete.")

    assert server.get(PREFIX + "/openapi.json").json()["servers"] == [{"url": "/api"}]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LOG_LEVEL": "loud", "WEB_CONCURRENCY": "0"}, "The settings are not valid:\n  LOG_LEVEL: "),
        ({"DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/x"}, "The database at 127.0.0.1:1/x cannot be used"),
        ({"DATABASE_URL": "sqlite:////proc/none/app.db"}, "The SQLite database at /proc/none/app.db cannot be opened"),
        ({"SSL_CERTFILE": "/none", "SSL_KEYFILE": "/none"}, "/none cannot be read"),
    ],
    ids=["settings", "database", "directory", "certificate"],
)
def test_startup_failure_is_logged_in_one_line(start: Start, variables: dict[str, str], message: str) -> None:
    server = start(**variables)

    assert server.wait() == 1
    (line,) = [line for line in map(json.loads, server.log.splitlines()) if line["level"] == "critical"]
    assert message in line["event"]
    assert "Traceback" not in server.log
    assert "Booting worker" not in server.log
    assert "hunter2" not in server.log
    assert not (server.folder / "pid").exists()


def test_port_in_use_is_logged_in_one_line(gunicorn: Start) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        server = gunicorn("app.main:app", f"--config={GUNICORN_CONF}", port=port)

        assert server.wait() == 1

    assert server.log.count(f"Cannot listen on 127.0.0.1:{port}: Address already in use") == 1
    assert server.log.count("in use") == 1
    assert "Traceback" not in server.log


def test_worker_restarted_during_a_database_outage_does_not_stop_the_server(start: Start, tmp_path: Path) -> None:
    server = start(WEB_CONCURRENCY="1")
    server.wait_for_log("Application startup complete.")
    (tmp_path / "data").rename(tmp_path / "away")
    (worker,) = re.findall(r"Booting worker with pid: (\d+)", server.log)

    os.kill(int(worker), signal.SIGKILL)

    server.wait_for_log("Application startup complete.", times=2)
    assert server.get(PREFIX + "/health/ready").status_code == 503


def test_links_in_mails_work_without_a_secret_key(start: Start) -> None:
    server = start(WEB_CONCURRENCY="1")
    server.wait_for_log("Application startup complete.")
    person = {"email": "ann@example.com", "password": "a good password", "full_name": "Ann"}
    httpx.post(f"{server.url}{PREFIX}/users/", json=person, timeout=TIMEOUT).raise_for_status()
    server.wait_for_log("#token=")
    (token,) = re.findall(r"#token=([\w=-]+)", server.log)

    url = f"{server.url}{PREFIX}/auth/email-verification/confirm"
    assert httpx.post(url, json={"token": token, "password": person["password"]}, timeout=TIMEOUT).status_code == 204


# Runs gunicorn in a process that cannot start threads, as in a container with a `pids` limit of 1.
WITHOUT_THREADS = """
import threading
from gunicorn.app.wsgiapp import run

def fail(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = fail
run()
"""


def test_failure_to_start_a_thread_is_logged(clean_environment: dict[str, str], tmp_path: Path) -> None:
    gunicorn = subprocess.run(
        [sys.executable, "-c", WITHOUT_THREADS, "app.main:app", f"--config={GUNICORN_CONF}"],
        env=clean_environment | {"DATABASE_URL": "postgresql://app@db/app", "PORT": str(free_port())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )

    lines = [json.loads(line) for line in gunicorn.stderr.splitlines()]
    assert gunicorn.returncode == 1
    assert [(line["level"], line["event"]) for line in lines if line["level"] in {"error", "critical"}] == [
        ("error", "startup failed"),
        ("critical", "Cannot start: can't start new thread"),
    ]
