"""What happens to requests when a container is stopped, reloaded, scaled, recycled or replaced: nothing.

Under steady load, half of it over connections that are kept and half over a new one for each request.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.container.balancer import balancing
from tests.container.conftest import Database
from tests.container.engine import PATIENCE, Container, json_lines, running, until
from tests.container.load import Report, Target, load

PERSON = {"email": "ann@example.com", "password": "correct horse battery staple", "full_name": "Ann"}
SETTINGS = {
    "WEB_CONCURRENCY": "2",
    "SECRET_KEY": "a secret key for tests, of 32 bytes or more",
    "RATE_LIMIT": "1000000/minute",
    "LOG_LEVEL": "info",
}


def options(**settings: str) -> list[str]:
    """The `--env` options of `docker run`."""
    return [f"--env={name}={value}" for name, value in {**SETTINGS, **settings}.items()]


def targets(container: Container, host: str = "", port: int = 8000) -> list[Target]:
    """A route that touches nothing and a route that asks the database, at a container or whatever is before it."""
    url = f"http://{container.ip}:8000"
    httpx.post(f"{url}/users/", json=PERSON, timeout=PATIENCE)
    tokens = httpx.post(
        f"{url}/auth/login", json={name: PERSON[name] for name in ("email", "password")}, timeout=PATIENCE
    ).json()
    auth = {"Authorization": f"Bearer {tokens['access_token']}"}
    address = (host or container.ip, port)
    return [Target(*address, "/health/live"), Target(*address, "/users/me", auth)]


def nothing_is_lost(report: Report, *, refused: bool = False) -> None:
    assert report.failures == []
    assert refused or report.refused == 0
    assert report.answers > report.kept > 0  # over connections that are kept, and over others


def workers(container: Container) -> int:
    """How many have started so far."""
    return container.log.count("Application startup complete.")


def goes_on(report: Report, seconds: float = 1) -> None:
    """Lets the load go on for a while."""
    answers = report.answers
    time.sleep(seconds)
    until(lambda: report.answers > answers, "answers go on")


@pytest.fixture
def container(image: str) -> Iterator[Container]:
    with running(image, *options()) as container:
        yield container.is_healthy()


def test_docker_stop_answers_every_request_that_it_accepted(container: Container) -> None:
    with load(*targets(container)) as report:
        goes_on(report)

        container.stop()

    nothing_is_lost(report, refused=True)
    assert container.inspect("{{.State.ExitCode}}") == "0"


def test_sighup_replaces_all_workers_and_no_request_is_lost(container: Container) -> None:
    with load(*targets(container)) as report:
        for times in range(1, 4):
            container.signal("HUP")
            until(lambda times=times: workers(container) == 2 + 2 * times, "new workers")  # type: ignore[misc]
            goes_on(report, 2)

    nothing_is_lost(report)


def test_scaling_up_and_down_loses_no_request(container: Container) -> None:
    with load(*targets(container)) as report:
        container.signal("TTIN")
        until(lambda: workers(container) == 3, "a third worker")
        container.signal("TTIN")
        until(lambda: workers(container) == 4, "a fourth worker")
        for _ in range(3):
            container.signal("TTOU")
            goes_on(report, 2)

        until(lambda: container.log.count("Worker exiting") == 3, "three workers have left")

    nothing_is_lost(report)


@pytest.mark.parametrize(("number", "seconds"), [("1", 1), ("2", 60)])
def test_recycling_after_max_requests_loses_no_request(image: str, number: str, seconds: float) -> None:
    settings = options(WEB_CONCURRENCY=number, MAX_REQUESTS="200", MAX_REQUESTS_JITTER="20")
    with running(image, *settings) as container:
        container.is_healthy()
        with load(*targets(container)) as report:
            goes_on(report, seconds)
            until(lambda: container.log.count("Maximum request limit") >= 8, "8 workers have been recycled")

        nothing_is_lost(report)


@pytest.mark.parametrize("moment", ["Maximum request limit", "Worker exiting"])
def test_docker_stop_while_the_only_worker_is_being_recycled_loses_no_request(image: str, moment: str) -> None:
    with running(image, *options(WEB_CONCURRENCY="1", MAX_REQUESTS="200", MAX_REQUESTS_JITTER="0")) as container:
        container.is_healthy()
        with load(*targets(container)) as report:
            until(lambda: moment in container.log, "it is being recycled")

            container.stop()

        nothing_is_lost(report, refused=True)
        assert container.inspect("{{.State.ExitCode}}") == "0"


def test_two_containers_behind_one_name_are_replaced_one_after_the_other_and_no_request_is_lost(
    image: str, database: Database
) -> None:
    settings = options(DATABASE_URL=database.url, DATABASE_MIGRATE="true", DRAIN_SECONDS="2", WEB_CONCURRENCY="1")
    with ExitStack() as stack, balancing() as balancer:

        def start() -> Container:
            container = stack.enter_context(running(image, *settings)).is_healthy()
            balancer.backends.append(container.ip)
            balancer.has(container.ip)
            return container

        first_two = [start(), start()]
        with load(*targets(first_two[0], "127.0.0.1", balancer.port)) as report:
            for old in first_two:
                start()
                old.stop(seconds=40)
                balancer.backends.remove(balancer.backends[0])
                goes_on(report)

        nothing_is_lost(report)
        for old in first_two:
            assert old.inspect("{{.State.ExitCode}}") == "0"
            assert {line["level"] for line in json_lines(old.log)} == {"info"}
