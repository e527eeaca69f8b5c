"""The limiter counts exactly, in Redis for all, and never stands in the way of a request when Redis does not answer."""

import asyncio
import re
from collections.abc import AsyncIterator
from time import monotonic
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import structlog
from pydantic import SecretStr

from app.lifespan import create_limiter, create_redis
from app.limiter import REDIS_SECONDS, RETRY_SECONDS, RateLimiter, Usage
from app.settings import AuthSettings, HTTPSettings, RedisSettings, Settings
from tests.conftest import SECRET_KEY, make_settings
from tests.gate import Gate, State, gate_before


def settings_with(redis_url: str | None) -> Settings:
    """Their key is a new one, and so are all the names in Redis: nobody else counts the same."""
    return make_settings(
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
            for name in await redis.keys("{rate}:account:*")
        }

    before = await names()
    await create_limiter(settings_with(redis_url), redis).hit("account", "ann@example.com")

    new = await names() - before
    milliseconds = [await redis.pttl(name) for name in new]
    await redis.aclose()

    assert new
    assert all(re.fullmatch(r"\{rate\}:account:[0-9a-f]{32}", name) for name in new)
    assert all(0 < left <= 60_000 for left in milliseconds)


async def test_nobody_is_told_to_come_back_in_no_time(redis_url: str) -> None:
    """Redis has 0 milliseconds left at a window's very end and, which a test can bring about, -1 without an end."""
    redis = create_redis(settings_with(redis_url).redis)
    assert redis
    name = uuid4().hex
    limiter = RateLimiter({name: "3/minute"}, redis=redis, secret_key=SECRET_KEY)
    await limiter.hit(name, "ann")
    (key,) = await redis.keys(f"{{rate}}:{name}:*")
    await redis.persist(key)

    try:
        usage = await limiter.hit(name, "ann")
    finally:
        await redis.delete(key)
        await redis.aclose()

    assert usage
    assert usage.seconds_left == 1


async def test_during_an_outage_one_request_at_a_time_asks_whether_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = monotonic()
    monkeypatch.setattr("app.limiter.monotonic", lambda: now)
    asked: list[asyncio.StreamWriter] = []

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        settings = settings_with(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        redis = create_redis(settings.redis)
        assert redis
        limiter = create_limiter(settings, redis)

        usages = [await limiter.hit("default", "ann") for _ in range(10)]
        assert len(asked) == 1

        now += RETRY_SECONDS
        usages += await asyncio.gather(*(limiter.hit("default", "ann") for _ in range(10)))
        assert len(asked) == 2
        await redis.aclose()

    assert set(usages) == {None}


async def test_workers_share_one_count(redis_url: str) -> None:
    settings = settings_with(redis_url)
    clients = [create_redis(settings.redis) for _ in range(2)]
    assert clients[0]

    usages = [await create_limiter(settings, client).hit("default", "ann") for client in clients]
    for client in clients:
        assert client
        await client.aclose()

    assert [usage.used for usage in usages if usage] == [1, 2]


async def test_those_who_come_while_redis_is_asked_are_counted_by_one_command(redis_url: str) -> None:
    redis = create_redis(settings_with(redis_url).redis)
    assert redis
    name = f"together-{uuid4().hex}"
    limiter = RateLimiter({name: "100/minute"}, redis=redis, secret_key=SECRET_KEY)
    await limiter.hit(name, "the first, who brings the script along")

    async with redis.monitor() as monitor:
        usages = await asyncio.gather(*(limiter.hit(name, "ann") for _ in range(20)))
        await redis.echo(f"{name} is over")
        commands: list[str] = []
        while not commands or "over" not in commands[-1]:
            said = await monitor.next_command()
            commands += [said["command"]] if name in said["command"] and said["client_type"] == "tcp" else []
    await redis.aclose()

    assert [usage.used for usage in usages if usage] == list(range(1, 21))
    assert [command.split()[0] for command in commands] == ["EVALSHA", "ECHO"]


async def test_a_client_who_leaves_takes_no_other_along(limiter: RateLimiter) -> None:
    hits = [asyncio.create_task(limiter.hit("default", "ann")) for _ in range(3)]
    await asyncio.sleep(0)  # they begin
    hits[0].cancel()

    _, *usages = await asyncio.gather(*hits, return_exceptions=True)

    assert [isinstance(usage, Usage) for usage in usages] == [True, True]


@pytest.fixture
async def gate(redis_url: str) -> AsyncIterator[Gate]:
    """A gate before Redis."""
    url = urlsplit(redis_url)
    async with gate_before(url.hostname or "", url.port or 6379) as gate:
        yield gate


async def test_who_waits_behind_one_that_finds_redis_away_does_not_try_again(gate: Gate) -> None:
    redis = create_redis(settings_with(f"redis://{gate.address}").redis)
    assert redis
    limiter = create_limiter(settings_with(None), redis)
    await limiter.hit("default", "ann")
    gate.turn("held")

    first = asyncio.create_task(limiter.hit("default", "ann"))
    while not limiter._turn.locked():  # noqa: ASYNC110, SLF001  it is asked when nobody else can ask
        await asyncio.sleep(0)
    second = asyncio.create_task(limiter.hit("default", "ann"))
    assert await first is None
    done, _ = await asyncio.wait({second}, timeout=REDIS_SECONDS / 2)
    await redis.aclose()

    assert [task.result() for task in done] == [None]


@pytest.mark.parametrize("outage", ["shut", "held", "slow"])
async def test_without_redis_requests_pass_at_once_until_it_is_back(
    gate: Gate, logs: list[structlog.typing.EventDict], outage: State
) -> None:
    settings = settings_with(f"redis://{gate.address}")
    redis = create_redis(settings.redis)
    assert redis
    limiter = create_limiter(settings, redis)

    for _ in range(2):
        logs.clear()
        before = await asyncio.gather(*(limiter.hit("default", "ann") for _ in range(5)))

        gate.turn(outage)
        started_at = monotonic()
        during = await asyncio.gather(*(limiter.hit("default", "ann") for _ in range(2)))
        during += [await limiter.hit("default", "ann") for _ in range(1000)]
        seconds = monotonic() - started_at

        gate.turn("open")
        async with asyncio.timeout(60):
            while not (after := await limiter.hit("default", "ann")):  # noqa: ASYNC110  there is no event
                await asyncio.sleep(0.02)
        again = await asyncio.gather(*(limiter.hit("default", "ann") for _ in range(5)))

        assert None not in before
        assert set(during) == {None}
        assert None not in again
        assert seconds < 30  # 250 if each had waited
        assert after
        assert [(entry["log_level"], entry["event"]) for entry in logs] == [
            ("warning", "Redis is away: requests are not limited"),
            ("info", "Redis is back: requests are limited again"),
        ]
    await redis.aclose()
