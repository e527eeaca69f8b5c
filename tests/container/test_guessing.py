"""Attackers cannot bypass the login limit by overloading the service until Redis commands time out."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
from hitless.accept import raise_file_limit
from processes import TIMEOUT, until

from tests.container.engine import run_container
from tests.container.service import CREDENTIALS, PERSON, run_service

CONNECTIONS = 1000
GUESSING_CLIENTS = 8
SECONDS = 20.0
QUOTA, WORKERS = 2, 3  # a small quota, so that uncounted guesses would exceed it even on a slow machine
REQUEST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.contextmanager
def busy(host: str) -> Iterator[None]:
    """Keep the service busy with many clients. Each sends its next request as soon as it has received a response."""
    raise_file_limit()
    responses, stop = 0, Event()

    async def run_client() -> None:
        nonlocal responses
        while not stop.is_set():
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # if the worker has been replaced
                await asyncio.sleep(0)  # let other clients run, even if connecting fails immediately
                reader, writer = await asyncio.open_connection(host, 8000)
                with contextlib.closing(writer):
                    while not stop.is_set():
                        writer.write(REQUEST)
                        await reader.readuntil(b"}")
                        responses += 1

    async def run_clients() -> None:
        clients = [asyncio.create_task(run_client()) for _ in range(CONNECTIONS)]
        await asyncio.to_thread(stop.wait)
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)

    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(asyncio.run, run_clients())
        try:
            until(lambda: responses > CONNECTIONS, "the service is busy")
            yield
        finally:
            stop.set()
        running.result()


def guess(host: str, end: float) -> Counter[int]:
    """Try to log in with wrong passwords until `end`, and count the response statuses."""
    statuses = Counter[int]()
    # Use a new connection for each request, so that requests reach all workers.
    with httpx.Client(timeout=TIMEOUT, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        while time.monotonic() < end:
            wrong = {**CREDENTIALS, "password": f"wrong password {time.monotonic()}"}
            response = client.post(f"http://{host}:8000/auth/login", json=wrong)
            statuses[response.status_code] += 1
    return statuses


def test_guesses_stay_within_the_quota_while_a_thousand_connections_are_busy(image: str, network: str) -> None:
    on_network = f"--network={network}"
    with run_container("redis:8-alpine", on_network) as redis:
        settings = {
            "REDIS_URL": f"redis://{redis.name}",
            "RATE_LIMIT_LOGIN": f"{QUOTA}/minute",
            "WEB_CONCURRENCY": str(WORKERS),
            # Use long timeouts so that only the rate limit rejects password guesses
            "DATABASE_POOL_TIMEOUT": "60",
            "DATABASE_STATEMENT_TIMEOUT": "60",
        }
        with run_service(image, on_network, "--cpus=1", "--memory=1g", **settings) as service:
            host = service.ip
            httpx.post(f"http://{host}:8000/users/", json=PERSON, timeout=TIMEOUT).raise_for_status()
            with busy(host), ThreadPoolExecutor(GUESSING_CLIENTS) as executor:
                end = time.monotonic() + SECONDS
                guesses = [executor.submit(guess, host, end) for _ in range(GUESSING_CLIENTS)]
                statuses = sum((each.result() for each in guesses), Counter[int]())

    print(f"-- {statuses}")  # noqa: T201  shown by `pytest -rP`
    assert 0 < statuses[401] <= QUOTA * WORKERS
    assert statuses[429] > 0
    assert statuses.keys() <= {401, 429, 503}
