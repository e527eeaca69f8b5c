"""What anybody sees who runs the image: it builds, and `docker run -p 8000:8000 app` serves."""

import re
import socket
from pathlib import Path

import httpx
import pytest
from processes import PATIENCE

from app import NAME
from tests.container.engine import Container, json_lines, running
from tests.container.service import CREDENTIALS, PERSON


def test_health_answers_200(service: Container) -> None:
    answer = httpx.get(f"{service.url}/health", timeout=PATIENCE)

    assert answer.status_code == 200
    assert answer.json() == {"status": "alive"}


def test_it_is_ready_on_a_database_of_its_own(service: Container) -> None:
    answer = httpx.get(f"{service.url}/health/ready", timeout=PATIENCE)

    assert answer.json() == {"status": "ready", "database": "connected"}


def test_several_workers_are_in_the_process_list_under_their_name(service: Container) -> None:
    processes = [line.split(maxsplit=2)[2] for line in service.processes]

    assert processes.count(f"gunicorn: master [{NAME}]") == 1
    assert processes.count(f"gunicorn: worker [{NAME}]") >= 3


def test_no_process_is_root(service: Container) -> None:
    users = {line.split()[1] for line in service.processes}

    assert users == {"10001"}
    assert service.inspect("{{.Config.User}}") == "10001:10001"  # a number, which Kubernetes can tell from root


def test_the_engine_reports_it_healthy(service: Container) -> None:
    assert service.inspect("{{.State.Health.Status}}") == "healthy"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_docs_render_from_the_container_alone(service: Container, page: str) -> None:
    with httpx.Client(base_url=service.url, timeout=PATIENCE) as client:
        html = client.get(page)
        assets = re.findall(r'(?:src|href)="([^"]+)"', html.text)
        answers = [client.get(asset) for asset in assets]

    assert html.status_code == 200
    assert html.headers["content-type"].startswith("text/html")
    assert any(asset.endswith(".js") for asset in assets)
    assert all(asset.startswith(("/", "data:")) for asset in assets)
    assert {answer.status_code for answer in answers} == {200}


def test_it_registers_users_logs_them_in_and_knows_them(service: Container) -> None:
    with httpx.Client(base_url=service.url, timeout=PATIENCE) as client:
        registered = client.post("/users/", json=PERSON)
        tokens = client.post("/auth/login", json=CREDENTIALS).json()
        me = client.get("/users/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})

    assert registered.status_code == 201
    assert me.json() == registered.json()


def test_each_line_of_its_log_is_one_json_object(service: Container) -> None:
    lines = json_lines(service.log)

    assert any(line["event"].startswith("Starting gunicorn") for line in lines)
    assert all(list(line)[:4] == ["timestamp", "level", "logger", "event"] for line in lines)


def test_docker_stop_ends_it_in_order(image: str) -> None:
    with running(image) as container:
        container.is_healthy()

        container.stop()

        assert container.inspect("{{.State.ExitCode}}") == "0"
        lines = json_lines(container.log)
        assert lines[-1]["event"] == "Shutting down: Master"
        assert "error" not in {line["level"] for line in lines}


def test_another_port_is_served_and_asked_for_health(image: str) -> None:
    with running(image, "--env", "PORT=9000") as container:
        container.is_healthy()

        assert "Listening at: http://0.0.0.0:9000" in container.log


NO_START = {
    "bad settings": (["--env", "LOG_LEVEL=loud"], "The settings are not valid:\n  LOG_LEVEL: "),
    "no production without its settings": (["--env", "ENVIRONMENT=production"], "\n  SECRET_KEY: must be set"),
    "an unreachable database": (
        ["--env", "DATABASE_URL=postgresql://user:hunter2@127.0.0.1:1/x"],
        "The database at 127.0.0.1:1/x cannot be used",
    ),
    "a data folder that cannot be written": (
        ["--user", "4242:4242"],
        "The SQLite database at /data/app.db cannot be opened by user 4242",
    ),
    "a file of settings that only its owner may read": (
        ["--volume", "{folder}/.env:/app/.env:ro"],
        ".env cannot be read by user 10001: PermissionError",
    ),
}


@pytest.mark.parametrize("case", NO_START)
def test_what_keeps_it_from_starting_is_said_in_one_line(image: str, tmp_path: Path, case: str) -> None:
    options, complaint = NO_START[case]
    (tmp_path / ".env").touch(mode=0o600)
    with running(image, *(option.format(folder=tmp_path) for option in options)) as container:
        assert container.ends() == 1

        (line,) = [line for line in json_lines(container.log) if line["level"] == "critical"]
        assert complaint in line["event"]
        assert "Traceback" not in container.log
        assert "hunter2" not in container.log
        assert "Booting worker" not in container.log


def test_a_taken_port_is_said_in_one_line(image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with running(image, "--network", "host", "--env", f"PORT={port}") as container:
            assert container.ends() == 1

            assert container.log.count("in use") == 1
            assert f"Cannot listen on 0.0.0.0:{port}: Address already in use" in container.log
            assert "Traceback" not in container.log
