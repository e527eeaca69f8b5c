"""After a stop signal, running requests finish, connections are closed, and the container's exit code is 0."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from processes import until

from tests.container.conftest import Database
from tests.container.engine import run_container
from tests.container.service import SLOW_APP, get, get_in_background, run_service, slow_command

LONG_GRACE = "--graceful-timeout=3600"
COUNT_CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
def database(database: Database) -> Database:
    """A database whose server logs every connection closed without a Terminate message, including idle ones."""
    database.query(f"ALTER DATABASE {database.name} SET log_min_messages = debug1")
    return database


def assert_connections_closed_properly(database: Database, log_before: str) -> None:
    """Assert that the service sent a termination message on each connection, and did not just exit."""
    log = database.server.log.removeprefix(log_before)
    assert database.query(COUNT_CONNECTIONS) == "0"
    assert "unexpected EOF" not in log
    assert "Connection reset" not in log


def test_docker_stop_finishes_running_requests_and_closes_database_connections(
    image: str, database: Database, background: ThreadPoolExecutor
) -> None:
    settings = {"DATABASE_URL": database.url, "DATABASE_MIGRATE": "true"}
    with run_service(image, SLOW_APP, command=slow_command(), **settings) as container:
        assert get(container, "/health/ready").status_code == 200
        assert int(database.query(COUNT_CONNECTIONS)) > 0
        log_before = database.server.log
        response = get_in_background(background, container, "/slow/5")

        container.stop(seconds=60)

        assert response.result().status_code == 200
        assert response.result().headers["connection"] == "close"
        assert container.exit_code == 0
        assert container.log_levels == {"info"}
        assert container.log.count("Application shutdown complete.") == 2
        assert_connections_closed_properly(database, log_before)


def test_request_longer_than_the_graceful_timeout_returns_503_and_the_lifespan_shuts_down(
    image: str, database: Database, background: ThreadPoolExecutor
) -> None:
    settings = {"DATABASE_URL": database.url, "DATABASE_MIGRATE": "true"}
    with run_service(image, SLOW_APP, command=slow_command("--graceful-timeout=8"), **settings) as container:
        assert get(container, "/health/ready").status_code == 200
        assert int(database.query(COUNT_CONNECTIONS)) > 0
        log_before = database.server.log
        response = get_in_background(background, container, "/slow/3600")

        container.stop(seconds=60)

        assert response.result().status_code == 503
        assert response.result().json() == {"error": "Shutting down", "type": "service_unavailable"}
        assert container.exit_code == 0
        assert container.messages("warning") == ["1 requests exceed the grace period of 3 s and are cancelled"]
        assert container.messages("error") == []
        assert "Traceback" not in container.log
        assert container.log.count("Application shutdown complete.") == 2
        assert_connections_closed_properly(database, log_before)


@pytest.mark.parametrize("second", ["TERM", "INT", "QUIT"])
def test_second_signal_stops_the_server_at_once(image: str, second: str, background: ThreadPoolExecutor) -> None:
    with run_service(image, SLOW_APP, command=slow_command(LONG_GRACE)) as container:
        response = get_in_background(background, container, "/slow/3600")
        container.send_signal("TERM")
        container.wait_for_log("Handling signal: term")

        container.send_signal(second)

        assert container.wait_for_exit() == 0
        assert isinstance(response.exception(), httpx.RemoteProtocolError)
        assert container.log_levels == {"info"}


@pytest.mark.parametrize("signal", ["INT", "QUIT"])
def test_sigint_and_sigquit_stop_the_server_at_once(image: str, signal: str, background: ThreadPoolExecutor) -> None:
    with run_service(image, SLOW_APP, command=slow_command(LONG_GRACE)) as container:
        response = get_in_background(background, container, "/slow/3600")

        container.send_signal(signal)

        assert container.wait_for_exit() == 0
        assert isinstance(response.exception(), httpx.RemoteProtocolError)
        assert container.log_levels == {"info"}


def test_sigterm_during_startup_stops_the_container(image: str, readable_path: Path) -> None:
    app = readable_path / "slow_import.py"
    app.write_text("import time; print('importing', flush=True); time.sleep(3600)")
    command = ("gunicorn", "slow_import:app", "-c", "gunicorn.conf.py")
    with run_container(image, f"--volume={app}:/app/slow_import.py:ro", command=command) as container:
        container.wait_for_log("importing")

        container.send_signal("TERM")

        assert container.wait_for_exit() == 0


def test_readiness_fails_during_drain_seconds_while_all_requests_are_served(image: str) -> None:
    with run_service(image, SLOW_APP, command=slow_command(), DRAIN_SECONDS="10") as container:
        container.send_signal("TERM")

        until(lambda: get(container, "/health/ready").status_code == 503, "readiness fails")
        ready = get(container, "/health/ready")
        assert ready.json() == {"error": "Shutting down", "type": "service_unavailable"}
        assert ready.headers["retry-after"] == "1"
        assert get(container, "/health/live").status_code == 200
        assert get(container, "/slow/0").status_code == 200
        assert container.wait_for_exit() == 0
        assert container.messages("error") == []
