"""Uvicorn's server with a shutdown that loses no request."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from types import FrameType

from uvicorn import Config, Server

from hitless.accept import Acceptor
from hitless.drain import is_draining

log = logging.getLogger("uvicorn.error")

# Seconds that a worker still answers on open connections after it has stopped accepting. A client that sends requests
# steadily sends its next one within this time, and learns from `Connection: close` to open a new connection.
LAST_REQUESTS_SECONDS = 0.5
# Seconds that a leaving worker waits for TLS handshakes in progress.
HANDSHAKE_SECONDS = 5
# The part of gunicorn's `graceful_timeout` that is kept for the lifespan's shutdown, in seconds.
LIFESPAN_SECONDS = 5
# Seconds that a worker that has served `max_requests` waits for its successor.
SUCCESSOR_SECONDS = 5

# Incremented whenever a worker starts to accept; shared by all workers.
_starts = mmap(-1, 1)


@dataclass(frozen=True)
class WorkerState:
    """What a worker tells the master, each in a byte of shared memory.

    Attributes:
        accepting: Whether the worker accepts connections.
        leaving: Whether the worker has served `max_requests` and waits for its successor.
    """

    accepting: mmap
    leaving: mmap


class GracefulServer(Server):
    """The server of one worker. It shuts down in two steps: first no new connections, then none at all.

    Args:
        config: Uvicorn's configuration.
        worker: The worker's number among all workers.
        state: The bytes shared with the master.
        notify: Sends a heartbeat to the master.
        grace: Seconds for the last requests.
    """

    def __init__(
        self, config: Config, *, worker: int, state: WorkerState, notify: Callable[[], None], grace: float
    ) -> None:
        super().__init__(config)
        self._worker = worker
        self._state = state
        self._notify = notify
        self._grace = grace
        self._acceptor: Acceptor

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  Uvicorn's signature
        """Start the shutdown. Uvicorn would raise the signal again at its end, and skip `worker_exit` and `atexit`."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the lifespan, then accept connections from the sockets."""
        await super().startup([])
        self._acceptor = Acceptor(
            sockets or [],
            self._create_protocol,
            tls=self.config.ssl,
            worker=self._worker,
            open_connections=lambda: len(self.server_state.connections),
        )
        self._acceptor.start()
        self._state.accepting[0] = True
        _starts[0] = (_starts[0] + 1) % 256

    def _create_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as Uvicorn calls it
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def on_tick(self, counter: int) -> bool:
        """Publish the number of connections, ten times per second."""
        self._acceptor.publish_count()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let clients leave, finish running requests within the grace, then shut down the lifespan."""
        heartbeat = asyncio.create_task(self._send_heartbeat())
        if not self.should_exit:  # no signal: the worker has served `max_requests`
            await self._wait_for_successor()
        deadline = asyncio.get_running_loop().time() + self._grace
        self._state.accepting[0] = False
        self._close_after_responses()
        if is_draining():
            # This may be the last worker to accept the connections in the backlog, however busy it is.
            await asyncio.sleep(LAST_REQUESTS_SECONDS)
            self._acceptor.accept_backlog()
        # Unless the whole server stops, the other workers accept from the same sockets.
        self._acceptor.stop()
        remaining = deadline - asyncio.get_running_loop().time() - LAST_REQUESTS_SECONDS
        await self._acceptor.wait_for_handshakes(min(HANDSHAKE_SECONDS, remaining))
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._finish_requests(deadline)
        await super().shutdown(sockets)
        heartbeat.cancel()

    async def _wait_for_successor(self) -> None:
        """Keep serving until another worker, any of them, starts to accept."""
        self._state.leaving[0] = True
        starts = _starts[0]
        with contextlib.suppress(OSError):  # the master has died
            os.kill(os.getppid(), signal.SIGCHLD)  # makes it look at its workers now
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SUCCESSOR_SECONDS):
                while _starts[0] == starts and not self.should_exit:  # noqa: ASYNC110  set by another process
                    await asyncio.sleep(0.02)

    def _close_after_responses(self) -> None:
        """Add `Connection: close` to every response from now on."""
        self.server_state.default_headers.append((b"connection", b"close"))
        # Running requests may have copied the default headers before.
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)  # the running request of an HTTP/1.1 connection
            if cycle and not cycle.response_complete:
                connection.shutdown()

    async def _finish_requests(self, deadline: float) -> None:
        """Wait for running requests, and cancel those that take too long, so that the application can respond 503.

        Uvicorn would cancel them too, but shut down the lifespan before they can respond.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110  Uvicorn's own sets
                    await asyncio.sleep(0.1)
        for connection in list(self.server_state.connections):
            connection.shutdown()  # again, which closes a WebSocket whose application is not idle
        if tasks := list(self.server_state.tasks):
            log.warning("%d requests exceed the grace of %d s and are cancelled", len(tasks), self._grace)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=LAST_REQUESTS_SECONDS)

    async def _send_heartbeat(self) -> None:
        """Send heartbeats for as long as a shutdown may take, and no longer."""
        for _ in range(round(SUCCESSOR_SECONDS + self._grace + LIFESPAN_SECONDS)):
            self._notify()
            await asyncio.sleep(1)
