"""Clients that continuously register users. Tests use them to check that acknowledged writes have been stored."""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
from processes import TIMEOUT, until

from app import PREFIX
from tests.people import PASSWORD

CLIENTS = 4
# Seconds that a client sleeps before each request, to keep the machine busy but not overloaded.
PAUSE = 0.05
# Settings that make password hashes cheap and rate limits unreachable
SETTINGS = {
    "ARGON2_MEMORY_KIB": "64",
    "ARGON2_TIME_COST": "1",
    "ARGON2_PARALLELISM": "1",
    "RATE_LIMIT_REGISTER": "1000000/minute",
    "RATE_LIMIT_LOGIN": "1000000/minute",
}


class Writers:
    """Several clients that register users, and the responses that the clients have received so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.acknowledged: list[str] = []
        self.statuses: Counter[int | str] = Counter()
        self.latest: int | str = 0

    async def run(self, stop: threading.Event) -> None:
        """Run all clients concurrently until `stop` is set."""
        async with httpx.AsyncClient(base_url=self.url + PREFIX, timeout=TIMEOUT) as http:
            await asyncio.gather(*(self.run_client(http, number, stop) for number in range(CLIENTS)))

    async def run_client(self, http: httpx.AsyncClient, number: int, stop: threading.Event) -> None:
        """Register one user after another, without retries."""
        for count in itertools.count():
            if stop.is_set():
                return
            await asyncio.sleep(PAUSE)
            email = f"user-{number}-{count}@example.com"
            try:
                person = {"email": email, "password": PASSWORD, "full_name": "A"}
                status: int | str = (await http.post("/users/", json=person)).status_code
            except httpx.TransportError as error:
                status = repr(error)
            if status == 201:
                self.acknowledged.append(email)
            self.statuses[status] += 1
            self.latest = status

    def wait_for_writes(self, number: int = 50) -> None:
        """Wait until `number` more writes have been acknowledged."""
        enough = len(self.acknowledged) + number
        until(lambda: len(self.acknowledged) >= enough, "writes succeed")


@contextmanager
def run_writers(url: str) -> Iterator[Writers]:
    """Run clients that register users, in a thread, until the `with` block ends."""
    writers, stop = Writers(url), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(asyncio.run, writers.run(stop))
        try:
            yield writers
        finally:
            stop.set()
        running.result()
