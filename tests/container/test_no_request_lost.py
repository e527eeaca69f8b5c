"""What happens to requests when a container is stopped, reloaded, scaled, recycled or replaced: nothing.

Under steady load, half of it over connections that are kept and half over a new one for each request.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from processes import until

from tests.container.balancer import balancing
from tests.container.conftest import Database
from tests.container.engine import Container, json_lines, running
from tests.container.load import goes_on, load, nothing_is_lost
from tests.container.service import options, targets, workers


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
