"""What happens when a container is told to end: requests finish, connections are closed, and the exit code is 0."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from processes import until

from tests.container.conftest import Database
from tests.container.engine import json_lines, running
from tests.container.service import SLOW, ask, events, get, options, slow_service

FOREVER = "--graceful-timeout=3600"
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def database(database: Database) -> Database:
    """One whose server logs each connection that ends without a goodbye; of one that is idle it would not."""
    database.query(f"ALTER DATABASE {database.name} SET log_min_messages = debug1")
    return database


def are_closed_in_order(database: Database, before: str) -> bool:
    """Whether all connections were closed, each with a goodbye, and none by the system when its process had ended."""
    news = database.server.log.removeprefix(before)
    return database.query(CONNECTIONS) == "0" and "unexpected EOF" not in news and "Connection reset" not in news


def test_requests_in_flight_are_answered_and_database_connections_closed(
    image: str, database: Database, background: ThreadPoolExecutor
) -> None:
    settings = options(DATABASE_URL=database.url, DATABASE_MIGRATE="true")
    with running(image, *SLOW, *settings, command=slow_service()) as container:
        container.is_healthy()
        assert get(container, "/health/ready").status_code == 200
        assert int(database.query(CONNECTIONS)) > 0
        before = database.server.log
        answer = ask(background, container, "/slow/5")

        container.stop(seconds=60)

        assert answer.result().status_code == 200
        assert answer.result().headers["connection"] == "close"
        assert container.inspect("{{.State.ExitCode}}") == "0"
        assert {line["level"] for line in json_lines(container.log)} == {"info"}
        assert container.log.count("Application shutdown complete.") == 2
        assert are_closed_in_order(database, before)


def test_a_request_longer_than_the_grace_is_told_so_and_the_shutdown_still_runs(
    image: str, database: Database, background: ThreadPoolExecutor
) -> None:
    settings = options(DATABASE_URL=database.url, DATABASE_MIGRATE="true")
    with running(image, *SLOW, *settings, command=slow_service("--graceful-timeout=8")) as container:
        container.is_healthy()
        assert get(container, "/health/ready").status_code == 200
        assert int(database.query(CONNECTIONS)) > 0
        before = database.server.log
        answer = ask(background, container, "/slow/3600")

        container.stop(seconds=60)

        assert answer.result().status_code == 503
        assert answer.result().json() == {"error": "Shutting down", "type": "service_unavailable"}
        assert container.inspect("{{.State.ExitCode}}") == "0"
        assert events(container, "warning") == ["1 requests take longer than the grace of 3 s, and are ended"]
        assert events(container, "error") == []
        assert "Traceback" not in container.log
        assert container.log.count("Application shutdown complete.") == 2
        assert are_closed_in_order(database, before)


@pytest.mark.parametrize("second", ["TERM", "INT", "QUIT"])
def test_a_second_signal_ends_it_at_once(image: str, second: str, background: ThreadPoolExecutor) -> None:
    with running(image, *SLOW, *options(), command=slow_service(FOREVER)) as container:
        container.is_healthy()
        answer = ask(background, container, "/slow/3600")
        container.signal("TERM")
        until(lambda: "Handling signal: term" in container.log, "the end has begun")

        container.signal(second)

        assert container.ends() == 0
        assert isinstance(answer.exception(), httpx.RemoteProtocolError)
        assert {line["level"] for line in json_lines(container.log)} == {"info"}


@pytest.mark.parametrize("first", ["INT", "QUIT"])
def test_sigint_and_sigquit_end_it_at_once(image: str, first: str, background: ThreadPoolExecutor) -> None:
    with running(image, *SLOW, *options(), command=slow_service(FOREVER)) as container:
        container.is_healthy()
        answer = ask(background, container, "/slow/3600")

        container.signal(first)

        assert container.ends() == 0
        assert isinstance(answer.exception(), httpx.RemoteProtocolError)
        assert {line["level"] for line in json_lines(container.log)} == {"info"}


def test_for_the_drain_seconds_readiness_says_no_while_everything_is_served(image: str) -> None:
    with running(image, *SLOW, *options(DRAIN_SECONDS="10"), command=slow_service()) as container:
        container.is_healthy()

        container.signal("TERM")

        until(lambda: get(container, "/health/ready").status_code == 503, "readiness says no")
        ready = get(container, "/health/ready")
        assert ready.json() == {"error": "Shutting down", "type": "service_unavailable"}
        assert ready.headers["retry-after"] == "1"
        assert get(container, "/health/live").status_code == 200
        assert get(container, "/slow/0").status_code == 200
        assert container.ends() == 0
        assert events(container, "error") == []
