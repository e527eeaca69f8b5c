"""A minimal load balancer in front of several containers."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
from processes import until

PORT = 8000
PROBE_INTERVAL = 0.2  # seconds between the readiness checks of a backend


class Balancer:
    """Connects each client to the next ready backend. Tests may change `backends` at any time."""

    def __init__(self) -> None:
        self.backends: list[str] = []
        self.port = 0
        self._ready: list[str] = []

    def wait_until_ready(self, backend: str) -> None:
        """Wait until the balancer sends connections to the backend."""
        until(lambda: backend in self._ready, f"{backend} is ready")

    async def run(self, started: threading.Event, stop: threading.Event) -> None:
        """Set `started` as soon as the balancer accepts connections, then serve until `stop` is set."""
        async with await asyncio.start_server(self._connect, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            async with httpx.AsyncClient(timeout=1) as client:
                while not stop.is_set():
                    self._ready = [backend for backend in self.backends if await _is_ready(client, backend)]
                    await asyncio.sleep(PROBE_INTERVAL)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for backend in list(self._ready):
            self._ready.append(self._ready.pop(0))  # round robin: the next connection goes to the next backend
            try:
                from_backend, to_backend = await asyncio.open_connection(backend, PORT)
            except OSError:
                continue  # no data has been sent, so try the next backend
            await asyncio.gather(_forward(reader, to_backend), _forward(from_backend, writer))
            return
        writer.close()


async def _is_ready(client: httpx.AsyncClient, backend: str) -> bool:
    try:
        return (await client.get(f"http://{backend}:{PORT}/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward data in one direction until the sender closes its connection."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def run_balancer() -> Iterator[Balancer]:
    """Run a load balancer in a thread until the `with` block ends."""
    balancer, started, stop = Balancer(), threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(asyncio.run, balancer.run(started, stop))
        started.wait()
        try:
            yield balancer
        finally:
            stop.set()
        running.result()
