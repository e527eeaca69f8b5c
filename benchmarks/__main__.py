"""Measures the service against the limit, one after the other in each round, and prints the medians as a table.

`python -m benchmarks` takes `wrk`, and Docker for PostgreSQL 18 and Redis 8. It loads all CPUs for some ten minutes.
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
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import NamedTuple
from uuid import uuid4

import asyncpg
from pydantic import SecretStr
from sqlalchemy import make_url

from app.migrations import migrate
from app.security import Tokens
from app.settings import DatabaseSettings
from benchmarks import load, servers
from benchmarks.hashes import PASSWORD, argon2, hashes_per_second
from benchmarks.load import Load
from benchmarks.servers import SECRET_KEY

# The first is a superuser. Addresses and names are such that a part of them fits few.
USERS = """
    INSERT INTO users (email, full_name, password_hash, is_active, is_superuser, credentials_version,
                       created_at, updated_at)
    SELECT md5(i::text) || '@example.com', 'User ' || md5((-i)::text), $3, true, i = 1, 1, now(), now()
    FROM generate_series($1::int, $2::int) AS i
"""
FIRST_EMAIL = "c4ca4238a0b923820dcc509a6f75849b@example.com"
FEW, MANY = 1000, 1_000_000
LOGIN_SECONDS = 10  # it takes some of them to have enough


class Row(NamedTuple):
    """What is compared, the one thing, the other, and their ratio."""

    what: str
    limit: str
    service: str
    ratio: str


class Benchmark(NamedTuple):
    """How long to measure, on which servers, and as whom."""

    rounds: int
    seconds: int
    database_url: str
    redis_url: str
    token: str

    def in_turns(self, *measure: Callable[[], Load]) -> list[Load]:
        """Measures one after the other in each round, so that what the machine does besides is the same for all."""
        rounds = [[one() for one in measure] for _ in range(self.rounds)]
        return [load.typical(loads) for loads in zip(*rounds, strict=True)]

    def get(self, server: servers.Server, path: str, connections: int = 32) -> Callable[[], Load]:
        """Loads a path."""
        return lambda: load.get(server.url + path, self.token, seconds=self.seconds, connections=connections)

    def log_in(self, server: servers.Server) -> Load:
        """Loads the login."""
        body = f'{{"email": "{FIRST_EMAIL}", "password": "{PASSWORD}"}}'
        return load.post(f"{server.url}/auth/login", body, seconds=LOGIN_SECONDS)


def main() -> None:
    """Starts what it takes, measures all, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of load at a time")
    parser.add_argument("--database-url", help="of a PostgreSQL to create a database on, instead of a container's")
    parser.add_argument("--redis-url", help="instead of a container's")
    arguments = parser.parse_args()

    with ExitStack() as stack:
        server_url, redis_url = arguments.database_url, arguments.redis_url
        if server_url is None:
            options = ["--env", "POSTGRES_PASSWORD=password", "--tmpfs", "/var/lib/postgresql"]
            address = stack.enter_context(servers.container("postgres:18-alpine", 5432, *options))
            server_url = f"postgresql://postgres:password@{address}/postgres"
        if redis_url is None:
            redis_url = f"redis://{stack.enter_context(servers.container('redis:8-alpine', 6379))}"
        name = f"benchmark_{uuid4().hex}"
        asyncio.run(execute(server_url, f"CREATE DATABASE {name}"))
        stack.callback(lambda: asyncio.run(execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")))
        database_url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
        asyncio.run(migrate(DatabaseSettings(url=SecretStr(database_url))))
        add_users(database_url, 1, FEW)

        day = timedelta(days=1)
        token = Tokens(secret_key=SECRET_KEY, access_lifetime=day, refresh_lifetime=day).issue(1)
        benchmark = Benchmark(arguments.rounds, arguments.seconds, database_url, redis_url, token)
        print("| | limit | service | ratio |\n|---|---|---|---|")  # noqa: T201  the result
        for row in rows(benchmark):
            print(f"| {' | '.join(row)} |", flush=True)  # noqa: T201


def rows(benchmark: Benchmark) -> Iterator[Row]:
    """Measures one row of the table after the other."""
    database_url = benchmark.database_url
    with servers.service(database_url) as service:
        with (
            servers.limit(database_url) as limit,
            servers.service(database_url, REDIS_URL=benchmark.redis_url) as redis,
        ):
            yield compare(benchmark, "`GET /health/live`", limit, service, "/health/live")
            yield compare(benchmark, "`GET /users/me`, limits counted in memory", limit, service, "/users/me")
            yield compare(benchmark, "`GET /users/me`, limits counted in Redis", limit, redis, "/users/me")
            yield compare(benchmark, "`GET /users/?limit=100`", limit, service, "/users/?limit=100")
        yield from compare_logins(benchmark, service)
        with servers.service(database_url, MAX_REQUESTS="1000") as recycling:
            for path in ("/health/live", "/users/me"):
                never, often = benchmark.in_turns(benchmark.get(service, path), benchmark.get(recycling, path))
                what = f"`MAX_REQUESTS`, 0 against 1000, on `GET {path}`"
                yield Row(what, show(never), show(often), ratio(often.rate, never.rate))
        settings = DatabaseSettings(url=SecretStr(database_url))
        asyncio.run(migrate(settings, "0001"))  # an index is made faster than it grows
        add_users(database_url, FEW + 1, MANY)
        asyncio.run(migrate(settings))
        yield from compare_pages(benchmark, service)
    yield from sizes(database_url)


def compare(benchmark: Benchmark, what: str, limit: servers.Server, service: servers.Server, path: str) -> Row:
    """Measures a path on both."""
    bound, ours = benchmark.in_turns(benchmark.get(limit, path), benchmark.get(service, path))
    return Row(what, show(bound), show(ours), f"{ratio(ours.rate, bound.rate)}, p99 {ratio(ours.p99, bound.p99)}")


def compare_logins(benchmark: Benchmark, service: servers.Server) -> Iterator[Row]:
    """Measures logins against what they cannot do without, and what they do to a request that has nothing to do."""
    bare, ours = benchmark.in_turns(
        lambda: Load(hashes_per_second(LOGIN_SECONDS), 0, 0), lambda: benchmark.log_in(service)
    )
    yield Row(
        "`POST /auth/login` against Argon2id alone",
        f"{bare.rate:.1f}/s",
        f"{ours.rate:.1f}/s",
        ratio(ours.rate, bare.rate),
    )

    def probe_in_the_storm() -> Load:
        with ThreadPoolExecutor() as executor:
            storm = executor.submit(benchmark.log_in, service)
            time.sleep(1)
            probe = benchmark.get(service, "/health/live", connections=1)()
            storm.result()
        return probe

    idle, storm = benchmark.in_turns(benchmark.get(service, "/health/live", connections=1), probe_in_the_storm)
    yield Row(
        "`GET /health/live` on one connection, idle against 32 logging in",
        show(idle),
        show(storm),
        "p99 " + ratio(storm.p99, idle.p99),
    )


def compare_pages(benchmark: Benchmark, service: servers.Server) -> Iterator[Row]:
    """Measures a page that lies deep, and searches, against the first page, one at a time."""
    deep = "cursor=NTAwMDAw"  # id 500,000
    comparisons = {
        "page 1 against one 500,000 users deep": ("/users/", f"/users/?{deep}"),
        "the same two pages of `q` that fits all": ("/users/?q=example", f"/users/?q=example&{deep}"),
        "page 1 against that of `q` that fits all": ("/users/", "/users/?q=example"),
        "page 1 against `q` that fits 100": ("/users/", "/users/?q=c4ca4"),
        "page 1 against `q` that fits one": ("/users/", "/users/?q=c4ca4238a0b9"),
    }
    for what, paths in comparisons.items():
        first, other = benchmark.in_turns(*(benchmark.get(service, path, connections=1) for path in paths))
        yield Row(f"1,000,000 users, {what}", show(first), show(other), f"p50 {ratio(other.p50, first.p50)}")


def sizes(database_url: str) -> Iterator[Row]:
    """Measures what five workers take before they have done anything much."""
    with servers.service(database_url, WEB_CONCURRENCY="5") as service:
        start = service.start_seconds
        if sys.platform == "linux":
            pss = sum(pss_of(int(entry.name)) for entry in Path("/proc").iterdir() if in_group(entry, service.group))
            yield Row("memory of five workers and their master (PSS)", "", f"{pss / 1024:.0f} MiB", "")
    times = []
    for _ in range(5):
        started_at = time.monotonic()
        subprocess.run([sys.executable, "-c", "import app.main"], check=True, cwd=servers.ROOT, capture_output=True)
        times.append(time.monotonic() - started_at)
    yield Row("`import app.main`, Python's own start with it", "", f"{median(times):.2f} s", "")
    yield Row("from its start to the first answer, five workers", "", f"{start:.2f} s", "")


def in_group(entry: Path, group: int) -> bool:
    """Whether an entry of /proc is a process of a group."""
    try:
        return entry.name.isdecimal() and os.getpgid(int(entry.name)) == group
    except ProcessLookupError:  # it ended meanwhile
        return False


def pss_of(pid: int) -> int:
    """A process's share of memory, KiB: what is shared counts in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def add_users(database_url: str, first: int, last: int) -> None:
    """Adds users of these numbers, all with one password."""
    asyncio.run(execute(database_url, USERS, first, last, argon2().hash(PASSWORD)))
    asyncio.run(execute(database_url, "VACUUM ANALYZE users"))


async def execute(url: str, statement: str, *arguments: object) -> None:
    """Runs a statement on a server that may be starting up still."""
    deadline = time.monotonic() + servers.PATIENCE
    while True:
        try:
            connection = await asyncpg.connect(url)
            break
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
    await connection.execute(statement, *arguments)
    await connection.close()


def show(measured: Load) -> str:
    """A load as it stands in the table."""
    return f"{measured.rate:,.0f}/s, p50 {measured.p50:.2f}, p99 {measured.p99:.2f} ms"


def ratio(ours: float, bound: float) -> str:
    """A ratio as it stands in the table."""
    return f"{ours / bound:.2f}"


if __name__ == "__main__":
    main()
