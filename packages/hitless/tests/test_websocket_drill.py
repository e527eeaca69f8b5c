"""No message is lost on many WebSocket connections while workers are recycled, reloaded and stopped."""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import httpx
import pytest
from gunicorn_process import Gunicorn, Start
from processes import TIMEOUT
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.drills

CONNECTIONS = 200


class Clients:
    """Clients that send one message after another, and reconnect when the server closes the connection.

    Attributes:
        acknowledged: The messages that were answered.
        codes: The number of times that each close code was received.
        pids: For each client, the process ids of the workers that answered it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.acknowledged: list[str] = []
        self.codes = Counter[int | None]()
        self.pids: list[set[str]] = [set() for _ in range(CONNECTIONS)]

    async def run(self, server: Gunicorn, disturb: Callable[[], Awaitable[None]]) -> None:
        """Run all clients. Once each client has received an answer, call `disturb`, and then stop the server."""
        clients = asyncio.gather(*(self._talk(client) for client in range(CONNECTIONS)))
        async with asyncio.timeout(2 * TIMEOUT):
            await self.until(lambda: all(self.pids))
            await disturb()
            server.send(signal.SIGTERM)
            await clients

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  there is no single event
            await asyncio.sleep(0.05)

    async def _talk(self, client: int) -> None:
        numbers = count()
        while True:
            try:
                connection = await connect(self.url, open_timeout=TIMEOUT)
            except ConnectionRefusedError:  # the server has stopped
                return
            try:
                while True:
                    message = f"{client}:{next(numbers)}"
                    await connection.send(message)
                    pid, _, answer = str(await connection.recv()).partition(" ")
                    assert answer == message
                    self.acknowledged.append(message)
                    self.pids[client].add(pid)
                    await asyncio.sleep(0.5)
            except ConnectionClosed:
                self.codes[connection.close_code] += 1


@pytest.fixture
def server(start: Start, tmp_path: Path) -> Gunicorn:
    server = start("--workers=2", "--max-requests=300", HANDLED_FILE=str(tmp_path / "handled"))
    server.wait_for_log("Application startup complete.", times=2)
    return server


@pytest.fixture
def clients(server: Gunicorn) -> Clients:
    return Clients(server.url.replace("http", "ws") + "/echo")


def check(server: Gunicorn, clients: Clients) -> None:
    """Check that every connection was closed with 1012, that no message was lost, and that no worker was killed."""
    assert server.wait() == 0
    assert set(clients.codes) == {1012}
    # Every answered message was handled exactly once, and every handled message was answered.
    assert Counter((server.folder / "handled").read_text().split()) == Counter(clients.acknowledged)
    assert "exceed the grace" not in server.log
    assert "WORKER TIMEOUT" not in server.log
    assert "Traceback" not in server.log
    assert server.log.count("has shut down its lifespan") == server.log.count("Application startup complete.")


async def test_recycling_loses_no_message(server: Gunicorn, clients: Clients) -> None:
    async def send_requests() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as client:
            while clients.codes.total() < 3 * CONNECTIONS:
                assert (await client.get("/pid")).status_code == 200

    await clients.run(server, send_requests)

    check(server, clients)
    assert "Maximum request limit of 300 exceeded" in server.log


async def test_sighup_loses_no_message(server: Gunicorn, clients: Clients) -> None:
    async def replace_workers() -> None:
        server.send(signal.SIGHUP)
        await clients.until(lambda: all(len(pids) > 1 for pids in clients.pids))

    await clients.run(server, replace_workers)

    check(server, clients)
    # The reload and the stop each disconnect every client. Workers are replaced one after another, so a client may
    # reconnect to a worker that has yet to be replaced, which disconnects the client once more.
    assert 2 * CONNECTIONS <= clients.codes.total() <= 3 * CONNECTIONS


async def test_sigterm_loses_no_message(server: Gunicorn, clients: Clients) -> None:
    await clients.run(server, lambda: asyncio.sleep(1))

    check(server, clients)
    assert clients.codes.total() == CONNECTIONS
