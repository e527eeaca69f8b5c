"""During many logins in a small container, no process runs out of memory and no request is lost."""

import asyncio
import time
from collections import Counter

import httpx
import pytest
from processes import TIMEOUT

from tests.container.conftest import Database
from tests.container.engine import Container, run_container
from tests.container.service import PERSON, api

CLIENTS = 100
SECONDS = 6
LONG_SECONDS = 60
MINIMUM_READS = 20
PEAK_V1, PEAK_V2 = "/sys/fs/cgroup/memory/memory.max_usage_in_bytes", "/sys/fs/cgroup/memory.peak"


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(LONG_SECONDS, marks=pytest.mark.soak)])
@pytest.mark.parametrize("mebibytes", [256, 512, 1024])
def test_many_logins_in_small_container_lose_no_request(
    image: str, database: Database, mebibytes: int, seconds: int
) -> None:
    memory = [f"--memory={mebibytes}m", f"--memory-swap={mebibytes}m", "--cpus=2"]
    rates = [f"--env=RATE_LIMIT{name}=1000000/minute" for name in ("", "_LOGIN", "_REGISTER")]
    settings = [f"--env=DATABASE_URL={database.url}", "--env=DATABASE_MIGRATE=true", "--env=MAX_REQUESTS=0"]
    # If other processes are using the CPUs, connecting to the database may take longer than the default timeouts.
    settings += ["--env=DATABASE_CONNECT_TIMEOUT=60", "--env=DATABASE_POOL_TIMEOUT=60"]
    with run_container(image, *memory, *rates, *settings) as container:
        container.wait_until_healthy()
        logins, reads, failures = asyncio.run(log_in_and_read(container, seconds))
        peak = int(container.execute("sh", "-c", f"cat {PEAK_V2} 2>/dev/null || cat {PEAK_V1}")) >> 20
        log = container.log

    assert failures == []
    p99 = sorted(reads)[len(reads) * 99 // 100]
    print(f"{mebibytes} MiB, peak {peak} MiB, {dict(logins)} logins, p99 of {len(reads)} reads {p99:.2f} s")  # noqa: T201  shown by `pytest -rP`
    assert set(logins) <= {200, 503}
    assert logins[200] > 0
    assert "SIGKILL" not in log
    assert '"level": "error"' not in log
    assert "may need" not in log


async def log_in_and_read(container: Container, seconds: int) -> tuple[Counter[int], list[float], list[str]]:
    """Log in with 100 concurrent clients while other clients read at a steady rate.

    Returns:
        The statuses of the logins, the duration of each read in seconds, and the exceptions raised by the clients.
    """
    logins, reads, failures = Counter[int](), list[float](), list[str]()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=api(container), timeout=TIMEOUT, limits=limits) as client:
        people = [PERSON | {"email": f"user{number}@example.com"} for number in range(CLIENTS)]
        for person in people:
            assert (await client.post("/users/", json=person)).status_code == 201
        login = (
            await client.post("/auth/login", json={name: people[0][name] for name in ("email", "password")})
        ).json()
        headers = {"Authorization": f"Bearer {login['access_token']}"}
        ends_at = time.monotonic() + seconds

        async def log_in(person: dict[str, str]) -> None:
            body = {name: person[name] for name in ("email", "password")}
            while time.monotonic() < ends_at:
                response = await client.post("/auth/login", json=body)
                logins[response.status_code] += 1
                if response.status_code == 503:
                    await asyncio.sleep(0.1 * int(response.headers["retry-after"]))

        async def read() -> None:
            while time.monotonic() < ends_at or len(reads) < MINIMUM_READS:
                started_at = time.monotonic()
                (await client.get("/users/me", headers=headers)).raise_for_status()
                reads.append(time.monotonic() - started_at)
                await asyncio.sleep(0.02)

        results = await asyncio.gather(*map(log_in, people), read(), return_exceptions=True)
        failures += [repr(result) for result in results if result is not None]
    return logins, reads, failures
