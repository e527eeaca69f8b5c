"""What happens when Redis is gone, deaf or slow: requests pass at once, and are counted again when it is back."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from processes import PATIENCE, until

from tests.container.engine import Container, cli, json_lines, running
from tests.container.load import goes_on, load, nothing_is_lost
from tests.container.service import options, targets

SLOW_LINE = Path(__file__).with_name("slow_line.py")
# Without a limit of its own, a client would wait for seconds, ten times.
AT_ONCE = 3


@pytest.fixture(scope="module")
def redis(network: str) -> Iterator[Container]:
    with running("redis:8-alpine", f"--network={network}") as container:
        yield container


@pytest.fixture(scope="module")
def line(image: str, network: str, redis: Container) -> Iterator[Container]:
    """A line to Redis that can be made slow."""
    options = [f"--network={network}", f"--volume={SLOW_LINE}:/slow_line.py:ro", "--no-healthcheck"]
    with running(image, *options, command=("python", "/slow_line.py", redis.name, "6379", "0.3")) as container:
        yield container


def with_redis(network: str, line: Container, **settings: str) -> list[str]:
    """The options of a service that counts in Redis."""
    return [f"--network={network}", *options(REDIS_URL=f"redis://{line.name}", MAX_REQUESTS="0", **settings)]


def turn(redis: Container, line: Container, state: str) -> None:
    """Begins an outage, or ends it."""
    match state:
        case "slow" | "fast":
            line.signal("USR1")
        case _:
            cli(state, redis.name)


@pytest.fixture(scope="module")
def service(image: str, network: str, line: Container) -> Iterator[Container]:
    with running(image, *with_redis(network, line)) as container:
        yield container.is_healthy()


@pytest.mark.parametrize(("outage", "end"), [("stop", "start"), ("pause", "unpause"), ("slow", "fast")])
def test_without_redis_requests_pass_at_once_and_are_counted_again_when_it_is_back(
    service: Container, redis: Container, line: Container, outage: str, end: str
) -> None:
    def is_counted() -> bool:
        return "ratelimit" in httpx.get(f"http://{service.ip}:8000/users/me", timeout=PATIENCE).headers

    *_, read = targets(service)
    until(is_counted, "requests are counted")
    log = len(service.log)
    with load(read) as report:
        goes_on(report)
        turn(redis, line, outage)
        try:
            until(lambda: not is_counted(), "requests pass")
            goes_on(report, 4)
            assert not is_counted()
            warnings = messages(service, log)["Redis is away: requests are not limited"]
        finally:
            turn(redis, line, end)
        until(lambda: messages(service, log)["Redis is back: requests are limited again"] >= 2, "both workers know")
        until(is_counted, "requests are counted again")

    nothing_is_lost(report)
    assert report.slowest < AT_ONCE
    # Each of the two workers says so once, and one that was too busy to hear of Redis just before had said so already.
    assert 1 <= warnings <= 2


def messages(service: Container, start: int) -> Counter[str]:
    """What the limiter has said since, and how often."""
    lines = json_lines(service.log[start:])
    return Counter(line["event"] for line in lines if line["logger"] == "app.limiter")


def test_all_workers_of_two_containers_share_one_count_and_nobody_slips_through(
    image: str, network: str, line: Container, background: ThreadPoolExecutor
) -> None:
    settings = with_redis(network, line, RATE_LIMIT="100/hour", SECRET_KEY="another secret key, for other counts")
    with running(image, *settings) as one, running(image, *settings) as other:
        urls = [f"http://{container.is_healthy().ip}:8000/users/me" for container in (one, other)] * 100

        answers = list(background.map(lambda url: httpx.get(url, timeout=PATIENCE), urls))

    counted = [answer for answer in answers if "ratelimit" in answer.headers]
    left = [int(re.sub(".*;r=([0-9]+);.*", r"\1", answer.headers["ratelimit"])) for answer in counted]
    # Some pass uncounted where the machine is so busy that Redis seems to be away.
    assert len(counted) > 150
    assert sorted(left) == [0] * (len(counted) - 100) + list(range(100))
    assert {answer.status_code for answer in answers} == {401, 429}
    assert [answer.status_code for answer in counted].count(401) == 100
