"""Accept connections and distribute them evenly among the workers.

All workers accept from the same listening sockets. If a proxy opens all its connections at once, the first worker to
wake up would accept them all and serve all traffic while they stay open. With two workers, this would reduce the number
of requests per second by 40 %. Each worker therefore publishes its number of connections. A worker that has far more
connections than another stops accepting for a millisecond.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import time
from collections.abc import Callable, Collection
from mmap import mmap
from typing import Any

from hitless.protocol import LimitedProtocol

log = logging.getLogger("uvicorn.error")

# A worker stops accepting connections for PAUSE_SECONDS if it has at least 2 * n + TOLERANCE connections, where n is
# the lowest number of connections of any worker. A smaller tolerance would also cause pauses for short-lived
# connections, which close too soon to need balancing.
TOLERANCE = 8
# Maximum number of connections to accept from a socket in one iteration of the event loop. Larger batches would leave
# fewer connections for the other workers. With smaller batches, a busy worker would need more iterations to empty the
# backlog.
BATCH_SIZE = 8
# How long, in seconds, a worker with too many connections stops accepting. After each pause, the worker accepts one
# connection, so that clients are served even if all other workers are stuck.
PAUSE_SECONDS = 0.001
# How long, in seconds, a worker stops accepting if it runs out of file descriptors or memory. Before this pause, the
# worker closes connections whose clients have sent nothing, and cancels TLS handshakes that began more than
# EXHAUSTED_SECONDS ago.
EXHAUSTED_SECONDS = 1.0
# Timeout of a TLS handshake, in seconds.
HANDSHAKE_SECONDS = 20.0

# One slot for each worker, in memory that all workers share. A slot is 0 if the worker does not accept connections.
# Otherwise, it is one more than the number of the worker's connections. Worker n uses slot n modulo the number of
# slots. If two workers use the same slot, connections are balanced less evenly.
SLOTS = memoryview(mmap(-1, 4 * 256)).cast("I")


def clear_slot(worker: int) -> None:
    """Mark a worker as no longer accepting connections, so that the other workers ignore it."""
    SLOTS[worker % len(SLOTS)] = 0


def raise_file_limit() -> None:
    """Raise the soft limit on open files to the hard limit, because each connection needs a file descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS may reject its own hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Acceptor:
    """Accept connections from listening sockets for one worker.

    Args:
        listeners: The listening sockets. The acceptor closes them when it stops.
        protocol_factory: Creates the protocol for each new connection.
        tls: The TLS configuration, or None for plain HTTP.
        worker: The worker's sequence number, which gunicorn calls `age`.
        connections: The worker's open connections.
    """

    def __init__(
        self,
        listeners: list[socket.socket],
        protocol_factory: Callable[[], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        worker: int,
        connections: Collection[object],
    ) -> None:
        self._listeners = listeners
        self._protocol_factory = protocol_factory
        self._tls = tls
        self._worker = worker
        self._connections = connections
        self._handshakes = dict[asyncio.Task[None], float]()  # handshakes in progress, with their start times

    def start(self) -> None:
        """Start accepting connections."""
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept_batch, listener)

    def stop(self) -> None:
        """Stop accepting connections.

        The other workers share the listening sockets. Unless the whole server is stopping, they accept the connections
        in the backlog and all later ones.
        """
        clear_slot(self._worker)
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners = []

    def publish_count(self) -> int:
        """Publish this worker's connection count for the other workers to read, and return it."""
        count = len(self._connections) + len(self._handshakes)
        SLOTS[self._worker % len(SLOTS)] = count + 1
        return count

    def accept_backlog(self) -> None:
        """Accept connections until the backlog is empty or the process runs out of file descriptors."""
        for listener in self._listeners:
            while self._accept(listener):
                pass

    async def wait_for_handshakes(self, timeout: float) -> None:  # noqa: ASYNC109  the timeout cancels nothing
        """Wait up to `timeout` seconds for all accepted connections to be set up, including TLS handshakes."""
        if self._handshakes:
            await asyncio.wait(self._handshakes, timeout=timeout)

    def _accept_batch(self, listener: socket.socket) -> None:
        for _ in range(BATCH_SIZE):
            if not self._accept(listener):
                return
            # All slots are 0 if no other worker accepts connections, and an older worker that shares this worker's slot
            # has just cleared it. The default, 1, then means 0 connections.
            fewest = min(filter(None, SLOTS), default=1) - 1
            if self.publish_count() >= 2 * fewest + TOLERANCE:
                self._pause(PAUSE_SECONDS)
                return

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
        loop.call_later(seconds, self.start)

    def _accept(self, listener: socket.socket) -> bool:
        """Accept one connection. Return whether the backlog may contain more."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError) as error:  # the backlog is empty, or the client has disconnected
            return isinstance(error, ConnectionError)
        except OSError as error:
            log.warning("Not accepting connections for %d s: %s", EXHAUSTED_SECONDS, error)
            for unused in [each for each in self._connections if isinstance(each, LimitedProtocol)]:
                unused.close_if_unused()
            for handshake, started_at in self._handshakes.items():
                if self._tls and time.monotonic() - started_at > EXHAUSTED_SECONDS:
                    handshake.cancel()
            self._pause(EXHAUSTED_SECONDS)
            return False
        connection.setblocking(False)
        task = asyncio.create_task(self._start_protocol(connection))
        self._handshakes[task] = time.monotonic()
        task.add_done_callback(self._handshakes.pop)
        return True

    async def _start_protocol(self, connection: socket.socket) -> None:
        options: dict[str, Any] = {"ssl": self._tls, "ssl_handshake_timeout": HANDSHAKE_SECONDS} if self._tls else {}
        with contextlib.suppress(OSError):  # the client has disconnected, does not speak TLS, or has timed out
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol_factory, connection, **options)
