"""Whether the time that a failed login takes tells why it failed.

    uv run python -m benchmarks.login_timing

An unknown address, a wrong password, and an inactive user's right one are tried in random order, with the real Argon2
parameters and all in one process, so that no network hides a difference. Each pair is compared by the Mann-Whitney U
test: does the one take longer than the other more often than chance would have it? Exits with 1 if so.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from itertools import combinations
from math import erfc, sqrt
from pathlib import Path

import httpx
from pydantic import SecretStr
from sqlalchemy import update
from starlette.types import Receive, Scope, Send

from app.main import create_app
from app.lifespan import lifespan
from app.logging import configure_logging
from app.settings import DatabaseSettings, HTTPSettings, LogSettings, RedisSettings, Settings
from app.users.models import User

PASSWORD = "correct horse battery staple"  # noqa: S105  nobody's
ATTEMPTS = {
    "unknown address": {"email": "nobody@example.com", "password": PASSWORD},
    "wrong password": {"email": "active@example.com", "password": "wrong horse battery staple"},
    "inactive user": {"email": "inactive@example.com", "password": PASSWORD},
}
# Where nothing differs, one run in a hundred finds a difference between any two.
SIGNIFICANCE = 0.01
NO_LIMIT = "999999999/second"


async def measure(samples: int, folder: Path) -> dict[str, list[float]]:
    """Returns the seconds that failed logins of each kind took."""
    settings = Settings(
        environment="test",
        database=DatabaseSettings(url=SecretStr(f"sqlite:///{folder}/app.db")),
        redis=RedisSettings(),
        log=LogSettings(level="warning"),
        http=HTTPSettings(rate_limit=NO_LIMIT, rate_limit_login=NO_LIMIT, rate_limit_register=NO_LIMIT),
    )
    configure_logging(settings)
    app = create_app(settings)
    async with lifespan(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": {**state}}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://test") as client:
            for name in ("active", "inactive"):
                user = {"email": f"{name}@example.com", "password": PASSWORD, "full_name": name}
                (await client.post("/users/", json=user)).raise_for_status()
            async with state["write_sessions"].begin() as session:
                await session.execute(update(User).where(User.email == "inactive@example.com").values(is_active=False))

            seconds: dict[str, list[float]] = {kind: [] for kind in ATTEMPTS}
            for _ in range(samples):
                for kind in random.sample(list(ATTEMPTS), len(ATTEMPTS)):
                    began_at = time.perf_counter()
                    response = await client.post("/auth/login", json=ATTEMPTS[kind])
                    seconds[kind].append(time.perf_counter() - began_at)
                    if response.status_code != httpx.codes.UNAUTHORIZED:
                        raise RuntimeError(response.text)
    return seconds


def mann_whitney(one: list[float], other: list[float]) -> float:
    """Returns how likely chance alone makes them so different (two-sided, by the normal approximation)."""
    ranks = {value: rank for rank, value in enumerate(sorted(one + other), 1)}
    u = sum(ranks[value] for value in one) - len(one) * (len(one) + 1) / 2
    mean = len(one) * len(other) / 2
    deviation = sqrt(mean * (len(one) + len(other) + 1) / 6)
    return erfc(abs(u - mean) / deviation / sqrt(2))


def main() -> None:
    """Measures, prints the figures, and exits with the verdict."""
    parser = argparse.ArgumentParser(description="Tries to tell failed logins apart by the time they take.")
    parser.add_argument("--samples", type=int, default=300, help="logins of each kind; by default 300, some minutes")
    with tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(measure(parser.parse_args().samples, Path(folder)))

    for kind, values in seconds.items():
        low, median, high = (1000 * value for value in statistics.quantiles(values, n=4))
        say(f"{kind:15}  median {median:.2f} ms, half of all between {low:.2f} and {high:.2f} ms")
    pairs = list(combinations(seconds, 2))
    chances = {pair: mann_whitney(seconds[pair[0]], seconds[pair[1]]) for pair in pairs}
    for (one, other), chance in chances.items():
        say(f"{one} / {other}: p = {chance:.3f}")
    if min(chances.values()) < SIGNIFICANCE / len(pairs):
        sys.exit("They can be told apart.")
    say("They cannot be told apart.")


def say(line: str) -> None:
    """Prints a line."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
