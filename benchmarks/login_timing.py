"""Check whether the response times of failed logins and password reset requests reveal if an account exists.

    uv run python -m benchmarks.login_timing

The benchmark tries to log in with an unknown address, with a wrong password, and with the right password of an inactive
user. It also requests password resets for an active user, an inactive user and an unknown address. Requests are sent in
random order and with the real Argon2 parameters. Client and application run in one process, so that no network delay
hides a difference. The Mann-Whitney U test compares each pair of kinds of request. If one kind takes longer more often
than chance can explain, the exit status is 1.
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
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Receive, Scope, Send

from app import PREFIX
from app.lifespan import State, lifespan
from app.logging import configure_logging
from app.mail.models import Mail
from app.main import create_app
from app.settings import Settings
from app.users.models import User

PASSWORD = "correct horse battery staple"  # noqa: S105  of users who do not exist
LOGINS = {
    "unknown address": {"email": "nobody@example.com", "password": PASSWORD},
    "wrong password": {"email": "active@example.com", "password": "wrong horse battery staple"},
    "inactive user": {"email": "inactive@example.com", "password": PASSWORD},
}
RESETS = {f"{name} user": {"email": f"{name}@example.com"} for name in ("active", "inactive", "unknown")}
# Groups of requests to compare. Each group has a path, the request bodies by kind, and the expected status.
GROUPS = {
    "failed login": ("/auth/login", LOGINS, httpx.codes.UNAUTHORIZED),
    "request for a reset": ("/auth/password-reset", RESETS, httpx.codes.ACCEPTED),
}
# The maximum probability, for each group, that a run reports a difference although there is none.
SIGNIFICANCE = 0.01
NO_LIMIT = "999999999/second"


Seconds = dict[str, list[float]]


async def measure(samples: int, folder: Path) -> dict[str, Seconds]:
    """Return all response times in seconds, by group and then by kind of request."""
    settings = Settings(
        environment="test",
        database_url=SecretStr(f"sqlite:///{folder}/app.db"),
        redis_url=None,
        log_level="warning",
        rate_limit=NO_LIMIT,
        rate_limit_login=NO_LIMIT,
        rate_limit_register=NO_LIMIT,
        rate_limit_mail=NO_LIMIT,
        rate_limit_recipient=NO_LIMIT,
    )
    configure_logging(settings)
    app = create_app(settings)
    async with lifespan(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": {**state}}, receive, send)

        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(with_state), base_url=f"http://test{PREFIX}"
        ) as client:
            for name in ("active", "inactive"):
                user = {"email": f"{name}@example.com", "password": PASSWORD, "full_name": name}
                (await client.post("/users/", json=user)).raise_for_status()
            async with AsyncSession(state["engine"]) as session, session.begin():
                await session.execute(update(User).where(User.email == "inactive@example.com").values(is_active=False))

            seconds: dict[str, Seconds] = {}
            for group, (path, requests, status) in GROUPS.items():
                seconds[group] = {kind: [] for kind in requests}
                for _ in range(samples):
                    for kind in random.sample(list(requests), len(requests)):
                        await wait_until_outbox_is_empty(state)
                        started_at = time.perf_counter()
                        response = await client.post(path, json=requests[kind])
                        seconds[group][kind].append(time.perf_counter() - started_at)
                        if response.status_code != status:
                            raise RuntimeError(response.text)
    return seconds


async def wait_until_outbox_is_empty(state: State) -> None:
    """Wait until the background task has processed the emails that earlier requests added."""
    async with AsyncSession(state["engine"]) as session:
        while await session.scalar(select(func.count()).select_from(Mail)):
            await session.rollback()


def mann_whitney(one: list[float], other: list[float]) -> float:
    """Return the p-value of a two-sided Mann-Whitney U test, using the normal approximation."""
    ranks = {value: rank for rank, value in enumerate(sorted(one + other), 1)}
    u = sum(ranks[value] for value in one) - len(one) * (len(one) + 1) / 2
    mean = len(one) * len(other) / 2
    deviation = sqrt(mean * (len(one) + len(other) + 1) / 6)
    return erfc(abs(u - mean) / deviation / sqrt(2))


def main() -> None:
    """Measure all requests and print the results. Exit with status 1 if the times in a group differ significantly."""
    parser = argparse.ArgumentParser(description="Try to tell by the time of a response whether an account exists.")
    parser.add_argument("--samples", type=int, default=300, help="requests of each kind; takes some minutes")
    with tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(measure(parser.parse_args().samples, Path(folder)))

    can_be_told_apart = [group for group, of_group in seconds.items() if compare(group, of_group)]
    if can_be_told_apart:
        sys.exit(f"They can be told apart: {', '.join(can_be_told_apart)}")
    print_line("They cannot be told apart.")


def compare(group: str, seconds: Seconds) -> bool:
    """Print a group's results. Return whether the response times of any two kinds of request differ significantly."""
    for kind, values in seconds.items():
        low, median, high = (1000 * value for value in statistics.quantiles(values, n=4))
        print_line(f"{group}, {kind:15}  median {median:.2f} ms, half of them between {low:.2f} and {high:.2f} ms")
    pairs = list(combinations(seconds, 2))
    probabilities = {pair: mann_whitney(seconds[pair[0]], seconds[pair[1]]) for pair in pairs}
    for (one, other), probability in probabilities.items():
        print_line(f"{group}, {one} / {other}: p = {probability:.3f}")
    return min(probabilities.values()) < SIGNIFICANCE / len(pairs)


def print_line(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
