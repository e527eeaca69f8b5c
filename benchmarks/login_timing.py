"""Check whether the time of a failed login reveals why it failed.

    uv run python -m benchmarks.login_timing

An unknown address, a wrong password, and the right password of an inactive user are tried in random order, with the
real Argon2 parameters and in one process, so that no network hides a difference. The Mann-Whitney U test compares each
pair: does one of them take longer more often than by chance? If so, the exit status is 1.
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
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Receive, Scope, Send

from app.lifespan import lifespan
from app.logging import configure_logging
from app.main import create_app
from app.settings import Settings
from app.users.models import User

PASSWORD = "correct horse battery staple"  # noqa: S105  of users who do not exist
ATTEMPTS = {
    "unknown address": {"email": "nobody@example.com", "password": PASSWORD},
    "wrong password": {"email": "active@example.com", "password": "wrong horse battery staple"},
    "inactive user": {"email": "inactive@example.com", "password": PASSWORD},
}
# If there is no difference, one run in a hundred finds one by chance.
SIGNIFICANCE = 0.01
NO_LIMIT = "999999999/second"


async def measure(samples: int, folder: Path) -> dict[str, list[float]]:
    """Return the seconds that failed logins of each kind took."""
    settings = Settings(
        environment="test",
        database_url=SecretStr(f"sqlite:///{folder}/app.db"),
        redis_url=None,
        log_level="warning",
        rate_limit=NO_LIMIT,
        rate_limit_login=NO_LIMIT,
        rate_limit_register=NO_LIMIT,
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
            async with AsyncSession(state["engine"]) as session, session.begin():
                await session.execute(update(User).where(User.email == "inactive@example.com").values(is_active=False))

            seconds: dict[str, list[float]] = {kind: [] for kind in ATTEMPTS}
            for _ in range(samples):
                for kind in random.sample(list(ATTEMPTS), len(ATTEMPTS)):
                    started_at = time.perf_counter()
                    response = await client.post("/auth/login", json=ATTEMPTS[kind])
                    seconds[kind].append(time.perf_counter() - started_at)
                    if response.status_code != httpx.codes.UNAUTHORIZED:
                        raise RuntimeError(response.text)
    return seconds


def mann_whitney(one: list[float], other: list[float]) -> float:
    """Return the probability of such a difference by chance (two-sided, with the normal approximation)."""
    ranks = {value: rank for rank, value in enumerate(sorted(one + other), 1)}
    u = sum(ranks[value] for value in one) - len(one) * (len(one) + 1) / 2
    mean = len(one) * len(other) / 2
    deviation = sqrt(mean * (len(one) + len(other) + 1) / 6)
    return erfc(abs(u - mean) / deviation / sqrt(2))


def main() -> None:
    """Measure failed logins, print the figures, and exit with 1 if they can be told apart."""
    parser = argparse.ArgumentParser(description="Try to tell failed logins apart by the time they take.")
    parser.add_argument("--samples", type=int, default=300, help="logins of each kind; the default takes some minutes")
    with tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(measure(parser.parse_args().samples, Path(folder)))

    for kind, values in seconds.items():
        low, median, high = (1000 * value for value in statistics.quantiles(values, n=4))
        print_line(f"{kind:15}  median {median:.2f} ms, half of them between {low:.2f} and {high:.2f} ms")
    pairs = list(combinations(seconds, 2))
    probabilities = {pair: mann_whitney(seconds[pair[0]], seconds[pair[1]]) for pair in pairs}
    for (one, other), probability in probabilities.items():
        print_line(f"{one} / {other}: p = {probability:.3f}")
    if min(probabilities.values()) < SIGNIFICANCE / len(pairs):
        sys.exit("They can be told apart.")
    print_line("They cannot be told apart.")


def print_line(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
