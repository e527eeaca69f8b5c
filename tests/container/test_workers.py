"""What happens when a worker dies, gets stuck or is stopped in the middle of its work, and how many there are."""

import re
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import httpx
import pytest
from processes import until

from tests.container.conftest import Database
from tests.container.engine import running
from tests.container.load import CLIENTS, Target, goes_on, load
from tests.container.service import SLOW, ask, events, options, slow_service

# Run inside: the seconds from the kill of the only worker to an answer, which nobody but its successor can give.
KILL = """
import http.client, os, sys, time
killed_at = time.monotonic()
os.kill(int(sys.argv[1]), 9)
connection = http.client.HTTPConnection("127.0.0.1", 8000)
connection.request("GET", "/health/live")
assert connection.getresponse().status == 200
print(time.monotonic() - killed_at)
"""
KILLS = 5  # of which some may take longer, where the machine has other work


def test_a_killed_worker_loses_only_what_it_had_in_hand_and_is_back_within_2_seconds(image: str) -> None:
    with running(image, *options(WEB_CONCURRENCY="1")) as container:
        container.is_healthy()
        seconds = []
        with load(Target(container.ip, 8000, "/health/live")) as report:
            for _ in range(KILLS):
                goes_on(report)
                victim = re.findall(r"Booting worker with pid: (\d+)", container.log)[-1]
                seconds.append(float(container.execute("python", "-c", KILL, victim)))
            goes_on(report)

        assert container.log.count("was sent SIGKILL") == KILLS
        assert median(seconds) < 2, seconds
        # At most one on each of the connections that it held; who waits to be accepted waits for the next one.
        assert len(report.failures) <= KILLS * CLIENTS
        assert report.refused == 0


def test_a_stuck_worker_is_killed_after_the_timeout_and_the_others_serve_on(
    image: str, background: ThreadPoolExecutor
) -> None:
    with running(image, *SLOW, *options(), command=slow_service("--timeout=3")) as container:
        container.is_healthy()
        answer = ask(background, container, "/stuck/3600")

        with load(Target(container.ip, 8000, "/health/live")) as report:
            until(lambda: container.log.count("Application startup complete.") == 3, "another worker")
            goes_on(report)

        assert isinstance(answer.exception(), httpx.RemoteProtocolError)
        (stuck,) = [event for event in events(container, "error") if event.startswith("Stuck")]
        assert "time.sleep(seconds)" in stuck
        # Those that the stuck worker had accepted.
        assert len(report.failures) <= CLIENTS
        assert report.answers > 0


def test_a_draining_worker_with_a_long_request_is_not_taken_for_a_stuck_one(
    image: str, background: ThreadPoolExecutor
) -> None:
    with running(image, *SLOW, *options(), command=slow_service("--timeout=3")) as container:
        container.is_healthy()
        answer = ask(background, container, "/slow/10")

        container.signal("HUP")

        assert answer.result().status_code == 200
        assert "WORKER TIMEOUT" not in container.log
        assert events(container, "error") == []


@pytest.mark.parametrize(
    ("limit", "decision"),
    [
        ("--cpus=0.5", "3 workers (2 x 1 CPUs + 1, by the cgroup's CPU quota)"),
        ("--cpus=1.5", "5 workers (2 x 2 CPUs + 1, by the cgroup's CPU quota)"),
        ("--cpuset-cpus=0", "3 workers (2 x 1 CPUs + 1, by the CPU affinity)"),
        ("--env=WEB_CONCURRENCY=4", "4 workers (WEB_CONCURRENCY)"),
    ],
)
def test_workers_are_counted_by_the_cpus_that_the_container_may_use(image: str, limit: str, decision: str) -> None:
    with running(image, limit) as container:
        container.is_healthy()

        number = int(decision.split(maxsplit=1)[0])
        assert f"{decision}, at most {6 * (number + 1)} database connections" in events(container, "info")
        until(lambda: container.log.count("Application startup complete.") == number, f"{number} workers")


def test_a_database_that_allows_fewer_connections_is_said_with_what_to_set(image: str, database: Database) -> None:
    settings = options(DATABASE_URL=database.url, DATABASE_MIGRATE="true", WEB_CONCURRENCY="5", DATABASE_POOL_SIZE="30")
    with running(image, *settings) as container:
        container.is_healthy()

        (advice,) = events(container, "warning")
        assert advice == (
            "5 workers and a successor may open 186 database connections, but the database allows 97: "
            "set DATABASE_POOL_SIZE to at most"
            " 15, or WEB_CONCURRENCY to at most 2, or raise max_connections"
        )
