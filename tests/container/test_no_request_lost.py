"""No request is lost when a container is stopped, reloaded, scaled or replaced, or its workers are recycled.

The load is constant: half of the clients keep their connection open, the others open one for each request.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.container.balancer import run_balancer
from tests.container.conftest import Database
from tests.container.engine import Container
from tests.container.load import assert_no_request_lost, continue_load, load
from tests.container.service import make_targets, run_service, wait_for_workers


@pytest.fixture
def container(image: str) -> Iterator[Container]:
    with run_service(image) as container:
        yield container


def test_docker_stop_loses_no_request(container: Container) -> None:
    with load(*make_targets(container)) as report:
        continue_load(report)

        container.stop()

    assert_no_request_lost(report, may_refuse=True)
    assert container.exit_code == 0


def test_sighup_loses_no_request(container: Container) -> None:
    with load(*make_targets(container)) as report:
        for reloads in range(1, 4):
            container.send_signal("HUP")
            wait_for_workers(container, 2 + 2 * reloads)
            continue_load(report, 2)

    assert_no_request_lost(report)


def test_scaling_up_and_down_loses_no_request(container: Container) -> None:
    with load(*make_targets(container)) as report:
        container.send_signal("TTIN")
        wait_for_workers(container, 3)
        container.send_signal("TTIN")
        wait_for_workers(container, 4)
        for _ in range(3):
            container.send_signal("TTOU")
            continue_load(report, 2)

        container.wait_for_log("Worker exiting", times=3)

    assert_no_request_lost(report)


@pytest.mark.parametrize(("workers", "seconds"), [("1", 1), ("2", 60)])
def test_recycling_after_max_requests_loses_no_request(image: str, workers: str, seconds: float) -> None:
    settings = {"WEB_CONCURRENCY": workers, "MAX_REQUESTS": "200", "MAX_REQUESTS_JITTER": "20"}
    with run_service(image, **settings) as container:
        with load(*make_targets(container)) as report:
            continue_load(report, seconds)
            container.wait_for_log("Maximum request limit", times=8)

        assert_no_request_lost(report)


@pytest.mark.parametrize("event", ["Maximum request limit", "Worker exiting"])
def test_docker_stop_while_the_only_worker_is_recycled_loses_no_request(image: str, event: str) -> None:
    settings = {"WEB_CONCURRENCY": "1", "MAX_REQUESTS": "200", "MAX_REQUESTS_JITTER": "0"}
    with run_service(image, **settings) as container:
        with load(*make_targets(container)) as report:
            container.wait_for_log(event)

            container.stop()

        assert_no_request_lost(report, may_refuse=True)
        assert container.exit_code == 0


def test_rolling_update_of_two_containers_loses_no_request(image: str, database: Database) -> None:
    settings = {"DATABASE_URL": database.url, "DATABASE_MIGRATE": "true", "DRAIN_SECONDS": "2", "WEB_CONCURRENCY": "1"}
    with ExitStack() as stack, run_balancer() as balancer:

        def start() -> Container:
            container = stack.enter_context(run_service(image, **settings))
            balancer.backends.append(container.ip)
            balancer.wait_until_ready(container.ip)
            return container

        first_two = [start(), start()]
        with load(*make_targets(first_two[0], "127.0.0.1", balancer.port)) as report:
            for old in first_two:
                start()
                old.stop(seconds=40)
                balancer.backends.remove(balancer.backends[0])
                continue_load(report)

        assert_no_request_lost(report)
        for old in first_two:
            assert old.exit_code == 0
            assert old.log_levels <= {"info", "warning"}
            assert set(old.messages("warning")) <= {"database unavailable"}  # a readiness check may time out
