"""If Redis is stopped, paused or slow, requests are hardly delayed, and workers count them until it recovers."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from processes import TIMEOUT, until

from tests.container.engine import Container, json_lines, run_container, run_docker
from tests.container.load import assert_no_request_lost, continue_load, load
from tests.container.service import api, get, make_targets, run_service

SLOW_PROXY = Path(__file__).with_name("slow_proxy.py")
# Maximum response time in seconds, even on a busy machine. By default, redis-py would make 11 attempts of 5 seconds.
MAX_RESPONSE_SECONDS = 4
UNAVAILABLE = "Redis cannot count: requests are counted in memory"
AVAILABLE = "Redis counts again: requests are counted in Redis"


@pytest.fixture(scope="module")
def redis(network: str) -> Iterator[Container]:
    with run_container("redis:8-alpine", f"--network={network}") as container:
        yield container


@pytest.fixture(scope="module")
def proxy(image: str, network: str, redis: Container) -> Iterator[Container]:
    """A proxy in front of Redis. SIGUSR1 switches it between slow and fast."""
    options = [f"--network={network}", f"--volume={SLOW_PROXY}:/slow_proxy.py:ro", "--no-healthcheck"]
    with run_container(image, *options, command=("python", "/slow_proxy.py", redis.name, "6379", "0.3")) as container:
        yield container


@pytest.fixture(scope="module")
def service(image: str, network: str, proxy: Container) -> Iterator[Container]:
    settings = {"REDIS_URL": f"redis://{proxy.name}", "MAX_REQUESTS": "0"}
    with run_service(image, f"--network={network}", **settings) as container:
        yield container


def change_redis(redis: Container, proxy: Container, action: str) -> None:
    """Start or end an outage.

    `slow` and `fast` both toggle the proxy's delay, so they must alternate. Any other action is a docker command
    that is run on the Redis container.
    """
    match action:
        case "slow" | "fast":
            proxy.send_signal("USR1")
        case _:
            run_docker(action, redis.name)


def redis_cli(redis: Container, *command: str) -> str:
    return redis.execute("redis-cli", "--raw", *command)


def is_counted_in_redis(service: Container, redis: Container) -> bool:
    """Send a request, and return whether it was counted in Redis."""
    redis_cli(redis, "FLUSHALL")
    assert "ratelimit" in get(service, "/users/me").headers
    return redis_cli(redis, "DBSIZE") != "0"


def count_messages(service: Container, log_before: int) -> Counter[str]:
    """Count the rate limiter's messages in the log. Ignore the log's first `log_before` characters."""
    lines = json_lines(service.log[log_before:])
    return Counter(line["event"] for line in lines if line["logger"] == "app.limiter")


@pytest.mark.parametrize(("outage", "end"), [("stop", "start"), ("pause", "unpause"), ("slow", "fast")])
def test_redis_outage_counts_in_the_workers_without_long_delays(
    service: Container, redis: Container, proxy: Container, outage: str, end: str
) -> None:
    *_, read = make_targets(service)
    until(lambda: is_counted_in_redis(service, redis), "requests are counted in Redis")
    log_before = len(service.log)
    with load(read) as report:
        continue_load(report)
        change_redis(redis, proxy, outage)
        try:
            until(lambda: count_messages(service, log_before)[UNAVAILABLE], "a worker notices")
            continue_load(report, 4)
            assert "ratelimit" in get(service, "/users/me").headers
            until(lambda: get(service, "/health/ready").json().get("redis") == "unavailable", "readiness tells it")
            warnings = count_messages(service, log_before)[UNAVAILABLE]
        finally:
            change_redis(redis, proxy, end)
        until(lambda: count_messages(service, log_before)[AVAILABLE] >= 2, "both workers notice")
        until(lambda: is_counted_in_redis(service, redis), "requests are counted in Redis again")

    assert_no_request_lost(report)
    assert report.slowest < MAX_RESPONSE_SECONDS
    # Each of the two workers logs one warning. On a busy machine, one of them may have logged its warning before the
    # outage, in which case only the other one is counted.
    assert 1 <= warnings <= 2


def test_workers_of_two_containers_share_one_rate_limit(
    image: str, network: str, redis: Container, proxy: Container, background: ThreadPoolExecutor
) -> None:
    settings = {"REDIS_URL": f"redis://{proxy.name}", "MAX_REQUESTS": "0", "RATE_LIMIT": "1000/hour"}
    on_network = f"--network={network}"
    with run_service(image, on_network, **settings) as one, run_service(image, on_network, **settings) as other:
        until(lambda: is_counted_in_redis(one, redis), "requests are counted in Redis")
        # Set the count in Redis to 900, to tell it apart from the workers' own counts. If Redis times out on a busy
        # machine, a worker counts in memory, starting at 1.
        redis_cli(redis, "SET", redis_cli(redis, "KEYS", "*"), "900", "KEEPTTL")
        urls = [f"{api(container)}/users/me" for container in (one, other)] * 100

        # Use a new connection for each request, so that requests reach all workers.
        with httpx.Client(timeout=TIMEOUT, limits=httpx.Limits(max_keepalive_connections=0)) as client:
            responses = list(background.map(client.get, urls))

    remaining = [int(re.sub(".*;r=([0-9]+);.*", r"\1", response.headers["ratelimit"])) for response in responses]
    counted_in_redis = {response: number for response, number in zip(responses, remaining, strict=True) if number < 100}
    assert len(counted_in_redis) > 150
    assert sorted(counted_in_redis.values()) == [0] * (len(counted_in_redis) - 100) + list(range(100))
    assert {response.status_code for response in responses} == {401, 429}
    assert [response.status_code for response in counted_in_redis].count(401) == 100
