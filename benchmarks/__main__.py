"""Compare the service with a minimal server (limit.py) in alternating measurements, and print the medians as tables.

`python -m benchmarks` needs `wrk`, and Docker for PostgreSQL 18 and Redis 8. It uses all CPUs for about ten minutes.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import httpx
from pydantic import SecretStr
from sqlalchemy import make_url

from app.migrations import migrate
from app.settings import Settings
from benchmarks import load, servers
from benchmarks.hashes import PASSWORD, argon2, hashes_per_second
from benchmarks.load import Load

# The first user is a superuser. Email addresses and names contain hashes, so that a search for part of a hash matches
# few users.
ADD_USERS = """
    INSERT INTO users (email, full_name, password_hash, is_active, is_superuser, credentials_version,
                       created_at, updated_at)
    SELECT md5(i::text) || '@example.com', 'User ' || md5((-i)::text), $3, true, i = 1, 1, now(), now()
    FROM generate_series($1::int, $2::int) AS i
"""
FIRST_EMAIL = "c4ca4238a0b923820dcc509a6f75849b@example.com"
SEARCH_INDEX = "ix_users_search"
FEW, MANY = 1000, 1_000_000
LOGIN_SECONDS = 10  # longer than other measurements, because logins are slow


class Row(NamedTuple):
    """A row of a table, with two measurements and their ratio."""

    name: str
    first: str
    second: str
    ratio: str


class Benchmark(NamedTuple):
    """The settings of a benchmark: rounds, seconds per measurement, database URLs, and a superuser's access token."""

    rounds: int
    seconds: int
    database_url: str
    redis_url: str
    token: str = ""

    def alternate(self, *measurements: Callable[[], Load]) -> list[Load]:
        """Take each measurement once per round, so that other load affects all of them equally. Return the medians."""
        rounds = [[measure() for measure in measurements] for _ in range(self.rounds)]
        return [load.median_load(loads) for loads in zip(*rounds, strict=True)]

    def get(self, server: servers.Server, path: str, connections: int = 32) -> Callable[[], Load]:
        """Return a function that measures the rate and the response times of GET requests to a path."""
        return lambda: load.get(server.url + path, self.token, seconds=self.seconds, connections=connections)

    def log_in(self, server: servers.Server) -> Load:
        """Measure the speed of logins."""
        body = f'{{"email": "{FIRST_EMAIL}", "password": "{PASSWORD}"}}'
        return load.post(f"{server.url}/auth/login", body, seconds=LOGIN_SECONDS)


def main() -> None:
    """Start the databases, take all measurements, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of which the median is printed")
    parser.add_argument("--seconds", type=int, default=5, help="length of a measurement")
    parser.add_argument("--database-url", help="a PostgreSQL server to create a database on, instead of a container")
    parser.add_argument("--redis-url", help="a Redis server, instead of a container")
    arguments = parser.parse_args()

    with ExitStack() as stack:
        server_url, redis_url = arguments.database_url, arguments.redis_url
        if server_url is None:
            server_url = stack.enter_context(servers.postgresql())
        if redis_url is None:
            redis_url = f"redis://{stack.enter_context(servers.container('redis:8-alpine', 6379))}"
        name = f"benchmark_{uuid4().hex}"
        asyncio.run(execute(server_url, f"CREATE DATABASE {name}"))
        stack.callback(lambda: asyncio.run(execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")))
        database_url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
        asyncio.run(migrate(Settings(database_url=SecretStr(database_url))))
        add_users(database_url, 1, FEW)

        benchmark = Benchmark(arguments.rounds, arguments.seconds, database_url, redis_url)
        for line in measure(benchmark):
            print(f"| {' | '.join(line)} |" if line else "", flush=True)  # noqa: T201  the result


def measure(benchmark: Benchmark) -> Iterator[tuple[str, ...]]:
    """Yield the rows of three tables as they are measured, with an empty row between tables."""
    database_url = benchmark.database_url
    with servers.service(database_url) as service:
        benchmark = benchmark._replace(token=get_token(service))
        with (
            servers.limit(database_url) as limit,
            servers.service(database_url, REDIS_URL=benchmark.redis_url) as redis,
        ):
            yield from (("", "limit", "service", "ratio"), ("---",) * 4)
            yield compare(benchmark, "`GET /health/live`", limit, service, "/health/live")
            yield compare(benchmark, "`GET /users/me`, rate limits in memory", limit, service, "/users/me")
            yield compare(benchmark, "`GET /users/me`, rate limits in Redis", limit, redis, "/users/me")
            yield compare(benchmark, "`GET /users/?limit=100`", limit, service, "/users/?limit=100")
        yield from ((), ("", "first", "second", "ratio"), ("---",) * 4)
        yield from compare_logins(benchmark, service)
        with servers.service(database_url, MAX_REQUESTS="1000") as replacing:
            for path in ("/health/live", "/users/me"):
                never, often = benchmark.alternate(benchmark.get(service, path), benchmark.get(replacing, path))
                name = f"`MAX_REQUESTS` 0 and 1000, `GET {path}`"
                yield Row(name, describe(never), describe(often), ratio(often.rate, never.rate))
        add_users(database_url, FEW + 1, MANY)
        yield from compare_pages(benchmark, service)
    yield from ((), ("", "service"), ("---",) * 2)
    yield from measure_sizes(database_url)


def compare(benchmark: Benchmark, name: str, limit: servers.Server, service: servers.Server, path: str) -> Row:
    """Compare the speed of the service with that of the minimal server, for GET requests to a path."""
    fastest, ours = benchmark.alternate(benchmark.get(limit, path), benchmark.get(service, path))
    ratios = f"{ratio(ours.rate, fastest.rate)}, p99 {ratio(ours.p99, fastest.p99)}"
    return Row(name, describe(fastest), describe(ours), ratios)


def compare_logins(benchmark: Benchmark, service: servers.Server) -> Iterator[Row]:
    """Compare the rate of logins with the rate of password hashing alone.

    Also compare the response times of health checks during logins with those without load.
    """
    hashing, logins = benchmark.alternate(
        lambda: Load(hashes_per_second(LOGIN_SECONDS), 0, 0), lambda: benchmark.log_in(service)
    )
    yield Row(
        "Argon2id alone and `POST /auth/login`",
        f"{hashing.rate:.1f}/s",
        f"{logins.rate:.1f}/s",
        ratio(logins.rate, hashing.rate),
    )

    def probe_during_logins() -> Load:
        with ThreadPoolExecutor() as executor:
            logins = executor.submit(benchmark.log_in, service)
            time.sleep(1)
            probe = benchmark.get(service, "/health/live", connections=1)()
            logins.result()
        return probe

    idle, busy = benchmark.alternate(benchmark.get(service, "/health/live", connections=1), probe_during_logins)
    yield Row(
        "`GET /health/live` on one connection, idle and during 32 concurrent logins",
        describe(idle),
        describe(busy),
        "p99 " + ratio(busy.p99, idle.p99),
    )


def compare_pages(benchmark: Benchmark, service: servers.Server) -> Iterator[Row]:
    """Compare the response times of the first page, a page far down the list, and searches. Use a single connection."""
    deep = "cursor=NTAwMDAw"  # after the user with id 500,000
    comparisons = {
        "page 1 and a page after 500,000 users": ("/users/", f"/users/?{deep}"),
        "the same pages of a `q` that matches all": ("/users/?q=example", f"/users/?q=example&{deep}"),
        "page 1 without and with a `q` that matches all": ("/users/", "/users/?q=example"),
        "page 1 without and with a `q` that matches 100": ("/users/", "/users/?q=c4ca4"),
        "page 1 without and with a `q` that matches one": ("/users/", "/users/?q=c4ca4238a0b9"),
    }
    for name, paths in comparisons.items():
        first, other = benchmark.alternate(*(benchmark.get(service, path, connections=1) for path in paths))
        yield Row(f"1,000,000 users, {name}", describe(first), describe(other), f"p50 {ratio(other.p50, first.p50)}")


def measure_sizes(database_url: str) -> Iterator[tuple[str, str]]:
    """Measure how long five workers take to start, the memory of all processes without load, and an import."""
    with servers.service(database_url, WEB_CONCURRENCY="5") as service:
        start = service.start_seconds
        if sys.platform == "linux":
            processes = [entry for entry in Path("/proc").iterdir() if is_in_group(entry, service.group)]
            pss = sum(read_pss(int(entry.name)) for entry in processes)
            yield "memory of five workers and the master (PSS)", f"{pss / 1024:.0f} MiB"
    times = []
    for _ in range(5):
        started_at = time.monotonic()
        subprocess.run([sys.executable, "-c", "import app.main"], check=True, cwd=servers.ROOT, capture_output=True)
        times.append(time.monotonic() - started_at)
    yield "`import app.main`, with the start of Python", f"{median(times):.2f} s"
    yield "from the start of five workers to the first response", f"{start:.2f} s"


def is_in_group(entry: Path, group: int) -> bool:
    """Return whether an entry of /proc is a process in the given process group."""
    try:
        return entry.name.isdecimal() and os.getpgid(int(entry.name)) == group
    except ProcessLookupError:  # the process has exited
        return False


def read_pss(pid: int) -> int:
    """Return a process's PSS in KiB: its memory, with each shared page divided by the number of processes using it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def get_token(service: servers.Server) -> str:
    """Log in as the first user, and return the access token."""
    credentials = {"email": FIRST_EMAIL, "password": PASSWORD}
    response = httpx.post(f"{service.url}/auth/login", json=credentials, timeout=servers.PATIENCE)
    return str(response.raise_for_status().json()["access_token"])


def add_users(database_url: str, first: int, last: int) -> None:
    """Add users numbered from `first` to `last`, all with the same password."""
    asyncio.run(_add_users(database_url, first, last))


async def _add_users(database_url: str, first: int, last: int) -> None:
    connection = await asyncpg.connect(database_url)
    # Recreating the index takes less time than adding a million entries to it.
    create_index = await connection.fetchval("SELECT indexdef FROM pg_indexes WHERE indexname = $1", SEARCH_INDEX)
    await connection.execute(f"DROP INDEX {SEARCH_INDEX}")
    await connection.execute(ADD_USERS, first, last, argon2().hash(PASSWORD))
    await connection.execute(create_index)
    await connection.execute("VACUUM ANALYZE users")
    await connection.close()


async def execute(url: str, statement: str) -> None:
    """Run a statement. Wait for the server if it is still starting."""
    deadline = time.monotonic() + servers.PATIENCE
    while True:
        try:
            connection = await asyncpg.connect(url)
            break
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
    await connection.execute(statement)
    await connection.close()


def describe(measured: Load) -> str:
    """Format a measurement as a table cell."""
    return f"{measured.rate:,.0f}/s, p50 {measured.p50:.2f}, p99 {measured.p99:.2f} ms"


def ratio(value: float, reference: float) -> str:
    """Format the ratio of two values as a table cell."""
    return f"{value / reference:.2f}"


if __name__ == "__main__":
    main()
