"""Rate limits. Requests are counted in Redis for all servers together, or in memory for this server alone.

Two libraries were rejected. `limits` 5.8 makes three round trips to Redis per request. Without Redis, it scans all
clients on each request (10 µs with one client, 820 µs with 10,000). `throttled-py` 3.5 does not support redis-py 8.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from hashlib import blake2b
from itertools import repeat
from mmap import mmap
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.errors import RateLimited
from app.settings import Settings

log = structlog.stdlib.get_logger("app.limiter")

# Maximum time in seconds that a request waits for Redis, which usually answers within a millisecond or two.
REDIS_SECONDS = 0.25
# Interval in seconds between attempts to use Redis while it is unavailable.
RETRY_SECONDS = 1.0
# Number of slots in the hash table of `MemoryCounter`. Each slot stores one client's count.
MEMORY_SLOTS = 32_768
# Number of consecutive slots from which `MemoryCounter` chooses one to store a key.
PROBES = 8

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}

# Run INCR and PEXPIRE in one script, which is atomic. A count without an expiry would lock the client out forever.
_COUNT = """
local counts = {}
for i, key in ipairs(KEYS) do
    local count = redis.call('INCR', key)
    if count == 1 then
        redis.call('PEXPIRE', key, ARGV[i])
    end
    counts[i] = {count, redis.call('PTTL', key)}
end
return counts
"""


_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


def rate_limit(name: str) -> Callable[[_Endpoint], _Endpoint]:
    """Give a route its own rate limit instead of the default. The setting RATE_LIMIT_<NAME> defines the limit.

    Requests are counted per client IP address, before the body is read.
    """

    def decorate(endpoint: _Endpoint) -> _Endpoint:
        endpoint.rate_limit = name  # type: ignore[attr-defined]  # read by RateLimitMiddleware
        return endpoint

    return decorate


class Count(NamedTuple):
    """The number of requests in a client's current rate limit window, and the seconds until the window ends."""

    used: int
    seconds_left: float


class Usage(NamedTuple):
    """How much of a rate limit a client has used: `used` requests, of `quota` allowed per `window` seconds."""

    name: str
    quota: int
    window: int
    used: int
    seconds_left: int

    @property
    def is_exceeded(self) -> bool:
        """Return whether the most recently counted request exceeds the quota."""
        return self.used > self.quota

    def headers(self) -> dict[str, str]:
        """Return the rate limit headers for a response.

        They follow draft-ietf-httpapi-ratelimit-headers-11.
        """
        headers = {
            "RateLimit-Policy": f'"{self.name}";q={self.quota};w={self.window}',
            "RateLimit": f'"{self.name}";r={max(0, self.quota - self.used)};t={self.seconds_left}',
        }
        return headers | {"Retry-After": str(self.seconds_left)} if self.is_exceeded else headers


class MemoryCounter:
    """Counts requests in memory that all workers share. Create it before the workers are forked.

    The counts are in a hash table of fixed size. A key is stored in one of PROBES consecutive slots. If all of them are
    taken, the key whose window ends first is evicted. There are no locks: if two workers count the same client at the
    same time, a count may be lost.

    Args:
        size: The number of slots. Each takes 20 bytes.
    """

    def __init__(self, size: int = MEMORY_SLOTS) -> None:
        self._size = size
        length = size + PROBES  # so that the slots of the last keys need not wrap around
        self._keys = memoryview(mmap(-1, 8 * length)).cast("Q")
        self._ends = memoryview(mmap(-1, 8 * length)).cast("d")
        self._used = memoryview(mmap(-1, 4 * length)).cast("I")

    def hit(self, key: bytes, window: int) -> Count:
        """Count one request for `key`. If the key has no open window, start one that lasts `window` seconds."""
        now, number = monotonic(), int.from_bytes(key[:8])  # all processes share the monotonic clock
        first = number % self._size
        slots = range(first, first + PROBES)
        slot = next((slot for slot in slots if self._keys[slot] == number and self._ends[slot] > now), None)
        if slot is None:
            slot = min(slots, key=self._ends.__getitem__)
            self._keys[slot], self._used[slot], self._ends[slot] = number, 0, now + window
        self._used[slot] = used = min(self._used[slot] + 1, 2**32 - 1)
        return Count(used, min(window, self._ends[slot] - now))  # `now + window` may be rounded up


class RedisCounter:
    """Counts requests in Redis. Requests that arrive while a command is running are batched into the next command.

    With 16 concurrent requests, this takes 18 µs of CPU time per request. One command per request would take 75 µs.
    """

    def __init__(self, redis: Redis) -> None:
        self._count = redis.register_script(_COUNT)
        self._waiting: list[tuple[str, int, asyncio.Future[Count | None]]] = []
        self._task: asyncio.Task[None] | None = None
        self.is_available = True
        self._retry_at = 0.0

    async def hit(self, key: str, window: int) -> Count | None:
        """Count one request. Return the new count, or None if Redis is unavailable or slow."""
        if not self.is_available:
            if monotonic() < self._retry_at:
                return None
            self._retry_at = monotonic() + RETRY_SECONDS  # so that other requests do not wait for this attempt
        future: asyncio.Future[Count | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, window, future))
        if self._task is None or self._task.done():
            # Start the task in an empty context. The task counts requests from many clients, so its log lines must not
            # contain this request's id.
            self._task = asyncio.create_task(self._send_batches(), context=Context())
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                return await future
        except TimeoutError:
            return None

    async def _send_batches(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            counts: Iterable[Count | None] = await self._send_batch(
                [key for key, _, _ in batch], [window * 1000 for _, window, _ in batch]
            )
            if not self.is_available:  # requests that arrived during the failed attempt do not wait for another
                batch, self._waiting, counts = batch + self._waiting, [], repeat(None)
            for (_, _, future), count in zip(batch, counts, strict=False):
                if not future.done():  # a request may have been cancelled or timed out
                    future.set_result(count)

    async def _send_batch(self, keys: list[str], windows: list[int]) -> list[Count]:
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                counts = await self._count(keys=keys, args=windows)
        except (RedisError, TimeoutError) as error:
            self._retry_at = monotonic() + RETRY_SECONDS
            if self.is_available:
                self.is_available = False
                reason = repr(error) if isinstance(error, RedisError) else f"no answer within {REDIS_SECONDS:g} s"
                log.warning("Redis cannot count: requests are counted in memory", reason=reason)
            return []
        if not self.is_available:
            self.is_available = True
            log.info("Redis counts again: requests are counted in Redis")
        return [Count(used, milliseconds / 1000) for used, milliseconds in counts]


class RateLimiter:
    """Counts requests against named limits. A window starts with a client's first request after the previous window.

    Clients are identified by a keyed hash, so that Redis stores neither IP addresses nor email addresses. If Redis is
    not configured, unavailable or slow, requests are counted in the memory of this server.

    Args:
        settings: Settings with the limits.
        redis: The client for Redis, or None if it is not configured.
        memory: One counter per limit, so that clients under one limit cannot evict the counts of another limit.
    """

    def __init__(self, settings: Settings, redis: Redis | None, memory: Mapping[str, MemoryCounter]) -> None:
        self._limits = read_limits(settings)
        self._key = blake2b(settings.secret_key.get_secret_value().encode(), person=b"rate limits").digest()
        self._memory = memory
        self._redis = RedisCounter(redis) if redis else None

    @property
    def counts_in_redis(self) -> bool:
        """Return whether Redis is configured and the last attempt to count in it, if any, succeeded.

        Redis may answer a PING even if it cannot count, for example because it is full or read-only.
        """
        return self._redis is not None and self._redis.is_available

    async def hit(self, name: str, client: str) -> Usage:
        """Count a client's request against the limit called `name`, and return the client's usage of that limit."""
        if name not in self._limits:
            raise LookupError(f"the limit {name!r} needs a setting RATE_LIMIT_{name.upper()}")
        quota, window = self._limits[name]
        digest = blake2b(f"{name}:{client}".encode(), key=self._key, digest_size=16)
        # The braces are a hash tag: they put all keys in the same Redis Cluster slot, so that one command can update
        # them all.
        count = await self._redis.hit(f"{{rate}}:{name}:{digest.hexdigest()}", window) if self._redis else None
        used, seconds_left = count or self._memory[name].hit(digest.digest(), window)
        return Usage(name, quota, window, used, max(1, math.ceil(seconds_left)))

    async def enforce(self, name: str, client: str) -> None:
        """Count a client's request against the limit called `name`.

        Raises:
            RateLimited: The request exceeds the limit.
        """
        usage = await self.hit(name, client)
        if usage.is_exceeded:
            raise RateLimited(headers=usage.headers())


def read_limits(settings: Settings) -> dict[str, tuple[int, int]]:
    """Map the name of each limit to its quota and its window in seconds.

    For example, the limit `mail` is read from the setting `rate_limit_mail`.
    """
    prefix = "rate_limit_"
    rates = {name.removeprefix(prefix): rate for name, rate in settings if name.startswith(prefix)}
    rates |= {"default": settings.rate_limit, "account": settings.rate_limit_login}
    return {name: _parse(rate) for name, rate in rates.items()}


def _parse(rate: str) -> tuple[int, int]:
    """Parse a validated rate, for example `600/minute`, into the quota and the window in seconds."""
    quota, _, unit = rate.partition("/")
    return int(quota), _UNITS[unit]
