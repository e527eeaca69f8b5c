"""One name in front of several containers: the least that a load balancer does."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
from processes import until

PORT = 8000


class Balancer:
    """Connects each client with the next backend that says it is ready; `backends` may change at any time."""

    def __init__(self) -> None:
        self.backends: list[str] = []
        self.port = 0
        self._ready: list[str] = []

    def has(self, backend: str) -> None:
        """Waits until a backend is given connections."""
        until(lambda: backend in self._ready, f"{backend} is ready")

    async def run(self, started: threading.Event, stop: threading.Event) -> None:
        """Serves until it is told to stop."""
        async with await asyncio.start_server(self._connect, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            async with httpx.AsyncClient(timeout=1) as client:
                while not stop.is_set():
                    self._ready = [backend for backend in self.backends if await _is_ready(client, backend)]
                    await asyncio.sleep(0.2)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for backend in list(self._ready):
            self._ready.append(self._ready.pop(0))  # each in turn
            try:
                from_backend, to_backend = await asyncio.open_connection(backend, PORT)
            except OSError:
                continue  # nothing was sent yet, so the next one may as well have it
            await asyncio.gather(_pipe(reader, to_backend), _pipe(from_backend, writer))
            return
        writer.close()


async def _is_ready(client: httpx.AsyncClient, backend: str) -> bool:
    try:
        return (await client.get(f"http://{backend}:{PORT}/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hands on what comes, its end too."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def balancing() -> Iterator[Balancer]:
    """Runs a balancer beside the test."""
    balancer, started, stop = Balancer(), threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(asyncio.run, balancer.run(started, stop))
        started.wait()
        try:
            yield balancer
        finally:
            stop.set()
        running.result()
