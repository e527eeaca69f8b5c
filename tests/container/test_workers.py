"""Killed and stuck workers are replaced, draining ones are not killed, and the number of workers fits the CPUs."""

import re
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import httpx
import pytest

from app import PREFIX
from tests.container.conftest import Database
from tests.container.engine import run_container
from tests.container.load import CLIENTS, Target, continue_load, load
from tests.container.service import (
    SLOW_APP,
    count_started_workers,
    get_in_background,
    run_service,
    slow_command,
    wait_for_workers,
)

# A script that runs in the container. It kills the only worker and prints after how many seconds a new one responds.
KILL_WORKER = """
import http.client, os, sys, time
killed_at = time.monotonic()
os.kill(int(sys.argv[1]), 9)
connection = http.client.HTTPConnection("127.0.0.1", 8000)
connection.request("GET", sys.argv[2])
assert connection.getresponse().status == 200
print(time.monotonic() - killed_at)
"""
KILLS = 5  # several, because a single replacement may take longer on a busy machine


def test_killed_worker_fails_only_its_open_requests_and_is_replaced_within_2_seconds(image: str) -> None:
    with run_service(image, WEB_CONCURRENCY="1") as container:
        seconds = []
        with load(Target(container.ip, 8000, f"{PREFIX}/health/live")) as report:
            for _ in range(KILLS):
                continue_load(report)
                pid = re.findall(r"Booting worker with pid: (\d+)", container.log)[-1]
                seconds.append(float(container.execute("python", "-c", KILL_WORKER, pid, f"{PREFIX}/health/live")))
            continue_load(report)

        assert container.log.count("was sent SIGKILL") == KILLS
        assert median(seconds) < 2, seconds
        # At most one request fails on each accepted connection. Connections in the backlog wait for the new worker.
        assert len(report.failures) <= KILLS * CLIENTS
        assert report.refused == 0


def test_stuck_worker_is_killed_after_the_timeout_and_replaced(image: str, background: ThreadPoolExecutor) -> None:
    with run_service(image, SLOW_APP, command=slow_command("--timeout=3")) as container:
        response = get_in_background(background, container, "/stuck/3600")

        with load(Target(container.ip, 8000, f"{PREFIX}/health/live")) as report:
            wait_for_workers(container, 3)
            continue_load(report)

        assert isinstance(response.exception(), httpx.RemoteProtocolError)
        (stuck,) = [message for message in container.messages("error") if message.startswith("A stuck worker")]
        assert "time.sleep(seconds)" in stuck
        # At most one request fails on each connection that the stuck worker has accepted.
        assert len(report.failures) <= CLIENTS
        assert report.responses > 0


def test_draining_worker_with_a_request_longer_than_the_timeout_is_not_killed(
    image: str, background: ThreadPoolExecutor
) -> None:
    with run_service(image, SLOW_APP, command=slow_command("--timeout=3")) as container:
        response = get_in_background(background, container, "/slow/10")

        container.send_signal("HUP")

        assert response.result().status_code == 200
        assert "WORKER TIMEOUT" not in container.log
        assert container.messages("error") == []


@pytest.mark.parametrize(
    ("option", "decision"),
    [
        ("--cpus=0.5", "3 workers (2 x 1 CPUs + 1, by the cgroup's CPU quota)"),
        ("--cpus=1.5", "5 workers (2 x 2 CPUs + 1, by the cgroup's CPU quota)"),
        ("--cpuset-cpus=0", "3 workers (2 x 1 CPUs + 1, by the CPU affinity)"),
        ("--env=WEB_CONCURRENCY=4", "4 workers (WEB_CONCURRENCY)"),
    ],
)
def test_number_of_workers_follows_from_the_cpus_available_to_the_container(
    image: str, option: str, decision: str
) -> None:
    number = int(decision.split(maxsplit=1)[0])
    with run_container(image, option) as container:
        wait_for_workers(container, number)

        (message,) = [message for message in container.messages("info") if message.startswith(f"{number} workers")]
        memory = r", at most \d+ of \d+ MiB of memory"
        assert re.fullmatch(f"{re.escape(decision)}{memory}, and {6 * (number + 1)} database connections", message)
        assert count_started_workers(container) == number


def test_database_with_too_few_connections_logs_which_settings_to_change(image: str, database: Database) -> None:
    settings = {"WEB_CONCURRENCY": "5", "DATABASE_POOL_SIZE": "30"}
    with run_service(image, DATABASE_URL=database.url, DATABASE_MIGRATE="true", **settings) as container:
        (warning,) = container.messages("warning")

    assert warning == (
        "5 workers, and one more while one is replaced, may open 186 database connections, but the database allows 97: "
        "set DATABASE_POOL_SIZE to at most"
        " 15, or WEB_CONCURRENCY to at most 2, or raise max_connections"
    )
