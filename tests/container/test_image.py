"""With default settings, `docker run -p 8000:8000` serves the API. If the startup fails, the reason is logged."""

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from processes import TIMEOUT

from app import NAME, PREFIX
from tests.conftest import ROOT
from tests.container.engine import Container, run_container, run_docker
from tests.container.service import PERSON, api, log_in
from tests.pages import command

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def service(image: str) -> Iterator[Container]:
    """A running container of the image, with its port published on a free host port."""
    with run_container(image, "--publish", "127.0.0.1::8000") as container:
        yield container.wait_until_healthy()


def test_documented_command_builds_and_runs_the_image(image: str) -> None:
    name = f"test-{uuid4().hex}"
    changes = {NAME: image, "--rm": f"--rm --detach --name {name}", "127.0.0.1:8000:8000": "127.0.0.1::8000"}
    script = command("docker-run")
    for default, value in changes.items():
        assert default in script
        script = script.replace(default, value)
    try:
        subprocess.run(["bash", "-euc", script], cwd=ROOT, check=True, capture_output=True)
        Container(name).wait_until_healthy()
    finally:
        run_docker("rm", "--force", "--volumes", name)


def test_health_returns_200(service: Container) -> None:
    response = httpx.get(f"{service.url}/health", timeout=TIMEOUT)

    assert response.status_code == 200
    assert response.json() == {"status": "alive"}


def test_default_database_is_ready(service: Container) -> None:
    response = httpx.get(f"{service.url}/health/ready", timeout=TIMEOUT)

    assert response.json() == {"status": "ready", "database": "connected"}


def test_process_list_shows_the_names_of_master_and_workers(service: Container) -> None:
    processes = [line.split(maxsplit=2)[2] for line in service.processes]

    assert processes.count(f"gunicorn: master [{NAME}]") == 1
    assert processes.count(f"gunicorn: worker [{NAME}]") >= 3


def test_no_process_runs_as_root(service: Container) -> None:
    users = {line.split()[1] for line in service.processes}

    assert users == {"10001"}
    assert service.inspect("{{.Config.User}}") == "10001:10001"  # numeric, because runAsNonRoot cannot check a name


def test_healthcheck_reports_healthy(service: Container) -> None:
    assert service.inspect("{{.State.Health.Status}}") == "healthy"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_docs_pages_load_all_assets_from_the_service(service: Container, page: str) -> None:
    with httpx.Client(base_url=service.url, timeout=TIMEOUT) as client:
        html = client.get(page)
        assets = re.findall(r'(?:src|href)="([^"]+)"', html.text)
        responses = [client.get(asset.removeprefix(PREFIX)) for asset in assets]

    assert html.status_code == 200
    assert html.headers["content-type"].startswith("text/html")
    assert any(asset.endswith(".js") for asset in assets)
    assert all(asset.startswith(("/", "data:")) for asset in assets)
    assert {response.status_code for response in responses} == {200}


def test_user_registers_logs_in_and_gets_the_current_user(service: Container) -> None:
    registered = httpx.post(f"{service.url}/users/", json=PERSON, timeout=TIMEOUT)
    me = httpx.get(f"{service.url}/users/me", headers=log_in(service.url), timeout=TIMEOUT)

    assert registered.status_code == 201
    assert me.json() == registered.json()


def test_each_log_line_is_one_json_object(service: Container) -> None:
    lines = service.log_lines

    assert any(line["event"].startswith("Starting gunicorn") for line in lines)
    assert all(list(line)[:4] == ["timestamp", "level", "logger", "event"] for line in lines)


def test_docker_stop_exits_with_0_and_without_errors(image: str) -> None:
    with run_container(image) as container:
        container.wait_until_healthy()

        container.stop()

        assert container.exit_code == 0
        assert container.log_lines[-1]["event"] == "Shutting down: Master"
        assert "error" not in container.log_levels


def test_port_applies_to_the_server_and_the_healthcheck(image: str) -> None:
    with run_container(image, "--env", "PORT=9000") as container:
        container.wait_until_healthy()

        assert "Listening at: http://0.0.0.0:9000" in container.log


@pytest.mark.parametrize("disable_ipv6", ["0", "1"])
def test_ipv6_host_applies_to_the_server_and_the_healthcheck(image: str, disable_ipv6: str) -> None:
    options = ("--env", "HOST=::", "--sysctl", f"net.ipv6.conf.all.disable_ipv6={disable_ipv6}")
    with run_container(image, *options) as container:
        container.wait_until_healthy()
        if disable_ipv6 == "0":
            get = f"import urllib.request; print(urllib.request.urlopen('http://[::1]:8000{PREFIX}/health').status)"
            assert container.execute("python", "-c", get) == "200"

        assert httpx.get(f"{api(container)}/health", timeout=TIMEOUT).status_code == 200
        assert "Listening at: http://[::]:8000" in container.log


STARTUP_FAILURES = {
    "invalid setting": (["--env", "LOG_LEVEL=loud"], "The settings are not valid:\n  LOG_LEVEL: "),
    "production without its settings": (["--env", "ENVIRONMENT=production"], "\n  SECRET_KEY: must be set"),
    "unreachable database": (
        ["--env", "DATABASE_URL=postgresql://user:hunter2@127.0.0.1:1/x"],
        "The database at 127.0.0.1:1/x cannot be used",
    ),
    "data directory without write permission": (
        ["--user", "4242:4242"],
        "The SQLite database at /data/app.db cannot be opened by user 4242",
    ),
    "settings file without read permission": (
        ["--volume", "{folder}/.env:/app/.env:ro"],
        "The settings cannot be read: [Errno 13] Permission denied: '.env'",
    ),
}


@pytest.mark.parametrize("case", STARTUP_FAILURES)
def test_startup_failure_prints_one_line(image: str, tmp_path: Path, case: str) -> None:
    options, message = STARTUP_FAILURES[case]
    (tmp_path / ".env").touch(mode=0o600)
    with run_container(image, *(option.format(folder=tmp_path) for option in options)) as container:
        assert container.wait_for_exit() == 1

        (line,) = [line for line in container.log_lines if line["level"] == "critical"]
        assert message in line["event"]
        assert "Traceback" not in container.log
        assert "hunter2" not in container.log
        assert "Booting worker" not in container.log


def test_port_in_use_prints_one_line(image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with run_container(image, "--network", "host", "--env", f"PORT={port}") as container:
            assert container.wait_for_exit() == 1

            assert container.log.count("in use") == 1
            assert f"Cannot listen on 0.0.0.0:{port}: Address already in use" in container.log
            assert "Traceback" not in container.log
