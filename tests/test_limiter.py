"""The limiter counts exactly, in Redis for all, and never stands in the way of a request when Redis does not answer."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from time import monotonic
from typing import Literal
from uuid import uuid4

import pytest
import structlog
from pydantic import SecretStr

from app.lifespan import create_limiter, create_redis
from app.limiter import RateLimiter, Usage
from app.settings import AuthSettings, HTTPSettings, RedisSettings, Settings
from tests.conftest import SECRET_KEY


def settings_with(redis_url: str | None) -> Settings:
    """Their key is a new one, and so are all the names in Redis: nobody else counts the same."""
    return Settings(
        environment="test",
        redis=RedisSettings(url=SecretStr(redis_url) if redis_url else None),
        auth=AuthSettings(secret_key=SecretStr(uuid4().hex)),
        http=HTTPSettings(rate_limit="3/minute", rate_limit_register="1/second"),
    )


@pytest.fixture(params=["memory", "redis"])
async def limiter(request: pytest.FixtureRequest) -> AsyncIterator[RateLimiter]:
    """A limiter of each kind that has counted nothing yet."""
    settings = settings_with(request.getfixturevalue("redis_url") if request.param == "redis" else None)
    redis = create_redis(settings.redis)
    yield create_limiter(settings, redis)
    if redis:
        await redis.aclose()


async def test_it_counts_down_and_says_when_it_starts_anew(limiter: RateLimiter) -> None:
    usages = [await limiter.hit("default", "ann") for _ in range(4)]

    assert [(usage.used, usage.is_exceeded) for usage in usages if usage] == [
        (1, False),
        (2, False),
        (3, False),
        (4, True),
    ]
    assert all(0 < usage.seconds_left <= 60 for usage in usages if usage)


async def test_it_counts_each_client_and_each_limit_by_itself(limiter: RateLimiter) -> None:
    usages = [await limiter.hit(*hit) for hit in (("default", "ann"), ("default", "bob"), ("login", "ann"))]

    assert [usage.used for usage in usages if usage] == [1, 1, 1]


async def test_it_loses_no_count_to_concurrency(limiter: RateLimiter) -> None:
    async def hits() -> list[Usage | None]:
        return [await limiter.hit("default", "ann") for _ in range(10)]

    usages = [usage for several in await asyncio.gather(*(hits() for _ in range(5))) for usage in several]

    assert sorted(usage.used for usage in usages if usage) == list(range(1, 51))


async def test_a_new_window_begins_when_the_old_one_is_over(limiter: RateLimiter) -> None:
    first = await limiter.hit("register", "ann")

    async with asyncio.timeout(60):
        while (later := await limiter.hit("register", "ann")) and later.used > 1:  # noqa: ASYNC110  there is no event
            await asyncio.sleep(0.02)

    assert first
    assert later
    assert (first.used, later.used) == (1, 1)


def test_the_headers_are_those_of_the_draft() -> None:
    usage = Usage("default", quota=600, window=60, used=1, seconds_left=60)

    assert usage.headers() == {"RateLimit-Policy": '"default";q=600;w=60', "RateLimit": '"default";r=599;t=60'}
    assert usage._replace(used=601, seconds_left=7).headers() == {
        "RateLimit-Policy": '"default";q=600;w=60',
        "RateLimit": '"default";r=0;t=7',
        "Retry-After": "7",
    }


async def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    limiter = RateLimiter({"default": "3/minute"}, redis=None, secret_key=SECRET_KEY, memory_size=3)

    usages = [await limiter.hit("default", who) for who in ("ann", "bob", "cyd", "dan", "ann", "dan")]

    assert [usage.used for usage in usages if usage] == [1, 1, 1, 1, 1, 2]


async def test_redis_holds_no_address_and_forgets(redis_url: str) -> None:
    redis = create_redis(settings_with(redis_url).redis)
    assert redis

    async def names() -> set[str]:
        return {
            name.decode() if isinstance(name, bytes) else name  # decided by its settings, which its types do not know
            for name in await redis.keys("rate:account:*")
        }

    before = await names()
    await create_limiter(settings_with(redis_url), redis).hit("account", "ann@example.com")

    new = await names() - before
    milliseconds = [await redis.pttl(name) for name in new]
    await redis.aclose()

    assert new
    assert all(re.fullmatch(r"rate:account:[0-9a-f]{32}", name) for name in new)
    assert all(0 < left <= 60_000 for left in milliseconds)


async def test_workers_share_one_count(redis_url: str) -> None:
    settings = settings_with(redis_url)
    clients = [create_redis(settings.redis) for _ in range(2)]
    assert clients[0]

    usages = [await create_limiter(settings, client).hit("default", "ann") for client in clients]
    for client in clients:
        assert client
        await client.aclose()

    assert [usage.used for usage in usages if usage] == [1, 2]


class Gate:
    """A way to Redis that can be shut, as if Redis were gone, or held, as if it hung."""

    def __init__(self, redis_url: str) -> None:
        host, _, port = redis_url.removeprefix("redis://").rpartition(":")
        self.redis = (host, int(port or 6379)) if host else (port, 6379)
        self.state: Literal["open", "shut", "held"] = "open"
        self.writers: list[asyncio.StreamWriter] = []

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pipes both ways between a client and Redis."""
        self.writers.append(writer)
        if self.state == "shut":
            writer.close()
            return
        redis_reader, redis_writer = await asyncio.open_connection(*self.redis)
        self.writers.append(redis_writer)
        await asyncio.gather(self.pipe(reader, redis_writer), self.pipe(redis_reader, writer))

    async def pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes on what comes, unless the gate is held, and the end."""
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self.state != "held":
                    writer.write(data)
        writer.close()

    def turn(self, state: Literal["open", "shut", "held"]) -> None:
        """Opens, shuts or holds the gate; those inside are shut out too."""
        self.state = state
        if state == "shut":
            for writer in self.writers:
                writer.close()


@pytest.fixture
async def gate(redis_url: str) -> AsyncIterator[tuple[Gate, str]]:
    """A gate, and the URL of Redis behind it."""
    gate = Gate(redis_url)
    server = await asyncio.start_server(gate.enter, "127.0.0.1", 0)
    yield gate, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    gate.turn("shut")
    await server.wait_closed()


@pytest.mark.parametrize("outage", ["shut", "held"])
async def test_without_redis_requests_pass_at_once_until_it_is_back(
    gate: tuple[Gate, str], logs: list[structlog.typing.EventDict], outage: Literal["shut", "held"]
) -> None:
    way, url = gate
    settings = settings_with(url)
    redis = create_redis(settings.redis)
    assert redis
    limiter = create_limiter(settings, redis)

    for _ in range(2):
        logs.clear()
        assert await limiter.hit("default", "ann")

        way.turn(outage)
        started_at = monotonic()
        during = await asyncio.gather(*(limiter.hit("default", "ann") for _ in range(30)))
        during += [await limiter.hit("default", "ann") for _ in range(1000)]
        seconds = monotonic() - started_at

        way.turn("open")
        async with asyncio.timeout(60):
            while not (after := await limiter.hit("default", "ann")):  # noqa: ASYNC110  there is no event
                await asyncio.sleep(0.02)

        assert set(during) == {None}
        assert seconds < 30  # 300 if each had waited
        assert after
        assert [(entry["log_level"], entry["event"]) for entry in logs] == [
            ("warning", "Redis is away: requests are not limited"),
            ("info", "Redis is back: requests are limited again"),
        ]
    await redis.aclose()
