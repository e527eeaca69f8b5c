"""The rate limiter counts in Redis, and in memory shared by all workers while Redis is unavailable."""

import asyncio
import multiprocessing
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from hashlib import blake2b
from time import monotonic
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import structlog
from redis.asyncio import Redis

from app.lifespan import create_redis
from app.limiter import PROBES, RETRY_SECONDS, MemoryCounter, RateLimiter, Usage, read_limits
from app.main import create_app
from app.settings import Settings
from tests.conftest import make_settings
from tests.tcp_proxy import ProxyState, TCPProxy, tcp_proxy


def limited_settings(redis_url: str | None, *, rate_limit: str = "3/minute") -> Settings:
    """Build settings with a new secret key. Redis keys are derived from it, so no other test uses the same keys."""
    return make_settings(
        redis_url=redis_url,
        secret_key=uuid4().hex,
        rate_limit=rate_limit,
        rate_limit_register="1/second",
    )


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return limited_settings(redis_url)


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    redis = create_redis(settings)
    assert redis
    yield redis
    await redis.aclose()


@pytest.fixture(params=["memory", "redis"])
async def limiter(request: pytest.FixtureRequest) -> AsyncIterator[RateLimiter]:
    """A new limiter. Tests that use it run twice: once with counts in memory, and once with counts in Redis."""
    settings = limited_settings(request.getfixturevalue("redis_url") if request.param == "redis" else None)
    redis = create_redis(settings)
    yield RateLimiter(settings, redis, defaultdict(MemoryCounter))
    if redis:
        await redis.aclose()


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[TCPProxy]:
    """A proxy in front of Redis."""
    url = urlsplit(redis_url)
    async with tcp_proxy(url.hostname or "", url.port or 6379) as proxy:
        yield proxy


@pytest.fixture
async def proxied_redis(proxy: TCPProxy) -> AsyncIterator[Redis]:
    redis = create_redis(limited_settings(f"redis://{proxy.address}"))
    assert redis
    yield redis
    await redis.aclose()


async def test_hits_are_counted_until_the_quota_is_exceeded(limiter: RateLimiter) -> None:
    usages = [await limiter.hit("default", "ann") for _ in range(4)]

    assert [(usage.used, usage.is_exceeded) for usage in usages] == [(1, False), (2, False), (3, False), (4, True)]
    assert all(0 < usage.seconds_left <= 60 for usage in usages)


async def test_clients_and_limits_are_counted_separately(limiter: RateLimiter) -> None:
    usages = [await limiter.hit(*hit) for hit in (("default", "ann"), ("default", "bob"), ("login", "ann"))]

    assert [usage.used for usage in usages] == [1, 1, 1]


async def test_concurrent_hits_are_all_counted(limiter: RateLimiter) -> None:
    async def hit_ten_times() -> list[Usage]:
        return [await limiter.hit("default", "ann") for _ in range(10)]

    usages = [usage for several in await asyncio.gather(*(hit_ten_times() for _ in range(5))) for usage in several]

    assert sorted(usage.used for usage in usages) == list(range(1, 51))


async def test_count_restarts_after_the_window(limiter: RateLimiter) -> None:
    first = await limiter.hit("register", "ann")

    async with asyncio.timeout(60):
        while (later := await limiter.hit("register", "ann")).used > 1:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.02)

    assert (first.used, later.used) == (1, 1)


def test_headers_follow_the_draft() -> None:
    usage = Usage("default", quota=600, window=60, used=1, seconds_left=60)

    assert usage.headers() == {"RateLimit-Policy": '"default";q=600;w=60', "RateLimit": '"default";r=599;t=60'}
    assert usage._replace(used=601, seconds_left=7).headers() == {
        "RateLimit-Policy": '"default";q=600;w=60',
        "RateLimit": '"default";r=0;t=7',
        "Retry-After": "7",
    }


def test_full_memory_evicts_the_window_that_ends_first() -> None:
    counter = MemoryCounter(1)  # all keys share the same slots
    keys = [bytes([number]) * 8 for number in range(PROBES + 1)]

    counts = [counter.hit(key, 60).used for key in [*keys, *reversed(keys)]]

    # The last key has evicted the first one. Every other key has kept its slot.
    assert counts == [1] * len(keys) + [2] * PROBES + [1]


def test_seconds_left_are_never_more_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 210.605
    monkeypatch.setattr("app.limiter.monotonic", lambda: now)

    seconds_left = MemoryCounter().hit(b"a" * 8, 60).seconds_left

    assert (now + 60) - now > 60  # because of floating-point rounding
    assert seconds_left == 60


def test_memory_counts_thousands_of_clients() -> None:
    counter = MemoryCounter()
    keys = [blake2b(str(number).encode(), digest_size=8).digest() for number in range(8_000)]

    for _ in range(3):
        counts = [counter.hit(key, 60).used for key in keys]

    assert counts.count(3) > 7_990


def test_application_has_a_counter_for_each_limit(settings: Settings) -> None:
    counters = create_app(settings).state.rate_counters

    assert counters.keys() == read_limits(settings).keys()
    assert len({id(counter) for counter in counters.values()}) == len(counters)


async def test_clients_of_one_limit_do_not_evict_the_counts_of_another() -> None:
    limiter = RateLimiter(limited_settings(None), None, defaultdict(lambda: MemoryCounter(1)))
    await limiter.hit("account", "ann")
    for number in range(2 * PROBES):
        await limiter.hit("default", str(number))

    assert (await limiter.hit("account", "ann")).used == 2


def test_forked_process_counts_in_the_same_memory() -> None:
    counter = MemoryCounter()
    counter.hit(b"a" * 8, 60)
    child = multiprocessing.get_context("fork").Process(target=counter.hit, args=(b"a" * 8, 60))
    child.start()
    child.join()

    assert counter.hit(b"a" * 8, 60).used == 3


async def test_redis_keys_are_hashed_and_expire(redis: Redis, settings: Settings) -> None:
    async def account_keys() -> set[str]:
        return {
            key.decode() if isinstance(key, bytes) else key  # redis-py's type hints allow both
            for key in await redis.keys("{rate}:account:*")
        }

    before = await account_keys()
    await RateLimiter(settings, redis, defaultdict(MemoryCounter)).hit("account", "ann@example.com")

    new = await account_keys() - before
    milliseconds = [await redis.pttl(key) for key in new]

    assert new
    assert all(re.fullmatch(r"\{rate\}:account:[0-9a-f]{32}", key) for key in new)
    assert all(0 < left <= 60_000 for left in milliseconds)


async def test_seconds_left_are_at_least_one(redis: Redis, settings: Settings) -> None:
    """At the end of a window, Redis may report that 0 ms are left.

    This is hard to time, so the test uses a key that never expires, for which Redis reports -1.
    """
    limiter = RateLimiter(settings, redis, defaultdict(MemoryCounter))
    before = set(await redis.keys("{rate}:default:*"))
    await limiter.hit("default", "ann")
    (key,) = set(await redis.keys("{rate}:default:*")) - before
    await redis.persist(key)

    try:
        usage = await limiter.hit("default", "ann")
    finally:
        await redis.delete(key)

    assert usage.seconds_left == 1


async def test_one_request_at_a_time_retries_redis_during_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = monotonic()
    monkeypatch.setattr("app.limiter.monotonic", lambda: now)
    attempts: list[asyncio.StreamWriter] = []

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(writer)
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        settings = limited_settings(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        redis = create_redis(settings)
        assert redis
        limiter = RateLimiter(settings, redis, defaultdict(MemoryCounter))

        usages = [await limiter.hit("default", "ann") for _ in range(10)]
        assert len(attempts) == 1

        now += RETRY_SECONDS
        usages += await asyncio.gather(*(limiter.hit("default", "ann") for _ in range(10)))
        assert len(attempts) == 2
        await redis.aclose()

    assert sorted(usage.used for usage in usages) == list(range(1, 21))


async def test_workers_share_one_count(redis_url: str) -> None:
    settings = limited_settings(redis_url)
    clients = [create_redis(settings) for _ in range(2)]

    usages = [
        await RateLimiter(settings, client, defaultdict(MemoryCounter)).hit("default", "ann") for client in clients
    ]
    for client in clients:
        assert client
        await client.aclose()

    assert [usage.used for usage in usages] == [1, 2]


async def test_hits_during_a_command_are_counted_together_by_the_next(redis: Redis, settings: Settings) -> None:
    limiter = RateLimiter(settings, redis, defaultdict(MemoryCounter))
    await limiter.hit("default", "the first client, whose command loads the script")
    end = uuid4().hex

    async with redis.monitor() as monitor:
        usages = await asyncio.gather(*(limiter.hit("default", "ann") for _ in range(20)))
        await redis.echo(end)
        seen = [await monitor.next_command()]
        while end not in seen[-1]["command"]:
            seen.append(await monitor.next_command())
    port = seen[-1]["client_port"]  # ignore other tests' connections
    verbs = [entry["command"].split()[0] for entry in seen if entry["client_port"] == port]
    commands = [verb for verb in verbs if verb not in {"HELLO", "CLIENT"}]  # ignore the handshake

    assert [usage.used for usage in usages] == list(range(1, 21))
    assert commands == ["EVALSHA", "ECHO"]


async def test_cancelled_hit_does_not_affect_others(limiter: RateLimiter) -> None:
    hits = [asyncio.create_task(limiter.hit("default", "ann")) for _ in range(3)]
    await asyncio.sleep(0)  # let the tasks start
    hits[0].cancel()

    _, *usages = await asyncio.gather(*hits, return_exceptions=True)

    assert [isinstance(usage, Usage) for usage in usages] == [True, True]


@pytest.mark.usefixtures("short_timeouts")
async def test_hits_queued_behind_a_failed_command_do_not_wait_again(
    proxy: TCPProxy, proxied_redis: Redis, settings: Settings
) -> None:
    limiter = RateLimiter(settings, proxied_redis, defaultdict(MemoryCounter))
    await limiter.hit("default", "ann")
    proxy.set_state("silent")
    proxy.sent.clear()

    first = asyncio.create_task(limiter.hit("default", "ann"))
    async with asyncio.timeout(60):
        while not proxy.sent:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)
    second = asyncio.create_task(limiter.hit("default", "ann"))
    usages = [await first]
    done, _ = await asyncio.wait({second}, timeout=0.5)  # another attempt to use Redis would take 1 s
    usages += [task.result() for task in done]

    assert [usage.used for usage in usages] == [1, 2]  # both were counted in memory
    assert len(proxy.sent) == 1


@pytest.mark.usefixtures("short_timeouts")
async def test_outage_is_logged_without_the_id_of_a_request(
    proxy: TCPProxy, proxied_redis: Redis, logs: list[structlog.typing.EventDict]
) -> None:
    limiter = RateLimiter(limited_settings(None), proxied_redis, defaultdict(MemoryCounter))
    proxy.set_state("closed")

    with structlog.contextvars.bound_contextvars(request_id="abc"):
        await limiter.hit("default", "ann")

    assert [entry.get("request_id") for entry in logs] == [None]


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("outage", ["closed", "silent", "slow"])
async def test_requests_are_counted_in_memory_while_redis_is_unavailable(
    proxy: TCPProxy, proxied_redis: Redis, logs: list[structlog.typing.EventDict], outage: ProxyState
) -> None:
    limiter = RateLimiter(limited_settings(None, rate_limit="3/hour"), proxied_redis, defaultdict(MemoryCounter))

    async def hit(times: int) -> list[int]:
        usages = await asyncio.gather(*(limiter.hit("default", "ann") for _ in range(times)))
        return sorted(usage.used for usage in usages)

    in_redis = in_memory = 0
    for _ in range(2):
        logs.clear()
        before = await hit(5)

        proxy.set_state(outage)
        started_at = monotonic()
        during = await hit(2)
        for _ in range(1000):
            during += await hit(1)
        seconds = monotonic() - started_at

        proxy.set_state("open")
        recovering = []
        async with asyncio.timeout(60):
            while len(logs) < 2:
                recovering += await hit(1)
                await asyncio.sleep(0.02)
        after = await hit(5)

        assert before == list(range(in_redis + 1, in_redis + 6))
        assert during == list(range(in_memory + 1, in_memory + 1003))
        assert after == list(range(recovering[-1] + 1, recovering[-1] + 6))
        assert seconds < 30  # it would be 1,000 if every request had waited
        assert [(entry["log_level"], entry["event"]) for entry in logs] == [
            ("warning", "Redis cannot count: requests are counted in memory"),
            ("info", "Redis counts again: requests are counted in Redis"),
        ]
        in_redis, in_memory = after[-1], max(during + recovering)
