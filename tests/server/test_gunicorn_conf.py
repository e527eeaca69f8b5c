"""What gunicorn does with gunicorn.conf.py, the application and no container."""

import json
import os
import re
import signal
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from app.server.balance import CONNECTIONS
from app.server.cpus import available_cpus
from certificates import TLS
from processes import PATIENCE

from app import NAME
from tests.conftest import ROOT
from tests.server.conftest import Conf, Gunicorn

Start = Callable[..., Gunicorn]


@pytest.fixture
def start(gunicorn: Start) -> Start:
    """Runs the whole service as in production, but on SQLite in an empty folder."""

    def start(*arguments: str, **variables: str) -> Gunicorn:
        return gunicorn("app.main:app", f"--config={ROOT}/gunicorn.conf.py", *arguments, **variables)

    return start


def test_the_settings_have_the_usual_values(conf: Conf) -> None:
    settings = conf()

    assert settings["bind"] == "0.0.0.0:8000"
    assert settings["workers"] == available_cpus().number * 2 + 1
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
        "pidfile": "/tmp/gunicorn.pid",  # noqa: S108  a container's own
        "tmp_upload_dir": None,
        "keyfile": None,
        "certfile": None,
    }
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("variables", "setting", "value"),
    [
        ({"PORT": "9000"}, "bind", "0.0.0.0:9000"),
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
def test_a_variable_reaches_its_setting(conf: Conf, variables: dict[str, str], setting: str, value: object) -> None:
    settings = conf(**variables)

    assert settings[setting] == value


def test_a_worker_that_has_ended_is_forgotten(conf: Conf) -> None:
    number = len(CONNECTIONS) - 1
    CONNECTIONS[number] = 9

    conf()["child_exit"](None, SimpleNamespace(age=number))

    assert CONNECTIONS[number] == 0


def test_the_service_serves_on_a_database_that_it_has_migrated_itself(start: Start, tmp_path: Path) -> None:
    server = start(WEB_CONCURRENCY="2")
    server.says("Application startup complete.", times=2)

    answer = httpx.post(
        f"{server.url}/users/",
        json={"email": "ann@example.com", "password": "correct horse battery staple", "full_name": "Ann"},
        timeout=PATIENCE,
    )

    assert answer.status_code == 201
    assert "server" not in answer.headers
    with sqlite3.connect(tmp_path / "data" / "app.db") as database:
        assert database.execute("SELECT email FROM users").fetchall() == [("ann@example.com",)]


def test_from_start_to_end_each_line_of_the_log_is_one_json_object(start: Start) -> None:
    server = start(WEB_CONCURRENCY="2", SECRET_KEY="0123456789abcdef0123456789abcdef")
    server.says("Application startup complete.", times=2)
    httpx.get(f"{server.url}/users/me", timeout=PATIENCE)

    server.send(signal.SIGTERM)

    assert server.ends() == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert {"gunicorn.error", "uvicorn.error", "app.access"} <= {line["logger"] for line in lines}
    assert {line["level"] for line in lines} == {"info"}
    assert lines[-1]["event"] == "Shutting down: Master"


@pytest.mark.parametrize(
    ("variables", "decision"),
    [
        ({"WEB_CONCURRENCY": "2", "DATABASE_POOL_SIZE": "3"}, "2 workers (WEB_CONCURRENCY), at most 12 database"),
        ({}, f"{available_cpus().number * 2 + 1} workers (2 x {available_cpus().number} CPUs + 1, by the "),
    ],
)
def test_it_says_how_many_workers_it_runs_and_why(start: Start, variables: dict[str, str], decision: str) -> None:
    server = start(**variables)

    server.says(decision)


def test_a_certificate_turns_on_https(start: Start, tls: TLS) -> None:
    server = start(WEB_CONCURRENCY="1", SSL_CERTFILE=str(tls.certfile), SSL_KEYFILE=str(tls.keyfile))
    server.says("Application startup complete.")

    answer = httpx.get(f"{server.url.replace('http', 'https')}/health", verify=tls.client, timeout=PATIENCE)

    assert answer.json() == {"status": "alive"}
    assert "Warning" not in server.log


def test_it_knows_the_path_that_a_proxy_takes_off(start: Start) -> None:
    server = start(WEB_CONCURRENCY="1", ROOT_PATH="/api")
    server.says("Application startup complete.")

    answer = httpx.get(f"{server.url}/openapi.json", timeout=PATIENCE)

    assert answer.json()["servers"] == [{"url": "/api"}]


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"LOG_LEVEL": "loud", "WEB_CONCURRENCY": "0"}, "The settings are not valid:\n  LOG_LEVEL: "),
        ({"DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/x"}, "The database at 127.0.0.1:1/x cannot be used"),
        ({"DATABASE_URL": "sqlite:////proc/none/app.db"}, "The SQLite database at /proc/none/app.db cannot be opened"),
        ({"SSL_CERTFILE": "/none", "SSL_KEYFILE": "/none"}, "SSL_CERTFILE: /none cannot be read"),
    ],
    ids=["settings", "database", "folder", "certificate"],
)
def test_what_stands_in_the_way_is_said_once(start: Start, variables: dict[str, str], complaint: str) -> None:
    server = start(**variables)

    assert server.ends() == 1
    (line,) = [line for line in map(json.loads, server.log.splitlines()) if line["level"] == "critical"]
    assert complaint in line["event"]
    assert "Traceback" not in server.log
    assert "Booting worker" not in server.log
    assert "hunter2" not in server.log
    assert not (server.folder / "pid").exists()


def test_a_taken_port_is_said_once(start: Start, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        server = start()

        assert server.ends() == 1

    assert server.log.count(f"Cannot listen on 127.0.0.1:{port}: Address already in use") == 1
    assert server.log.count("in use") == 1
    assert "Traceback" not in server.log


def test_a_worker_that_comes_back_during_an_outage_does_not_end_the_server(start: Start, tmp_path: Path) -> None:
    server = start(WEB_CONCURRENCY="1")
    server.says("Application startup complete.")
    (tmp_path / "data").rename(tmp_path / "away")
    (worker,) = re.findall(r"Booting worker with pid: (\d+)", server.log)

    os.kill(int(worker), signal.SIGKILL)

    server.says("Application startup complete.", times=2)
    assert httpx.get(f"{server.url}/health/ready", timeout=PATIENCE).status_code == 503
