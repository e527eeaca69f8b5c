"""Extend Uvicorn's server with a shutdown that loses no request."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from mmap import mmap
from types import FrameType

from uvicorn import Config, Server

from hitless.accept import Acceptor
from hitless.drain import is_draining, is_stopping
from hitless.protocol import LimitedProtocol
from hitless.shared import Phase, heartbeat_loss_logged, master_heartbeat, starts

log = logging.getLogger("uvicorn.error")

# How long, in seconds, idle connections stay open when the whole server stops. A busy client sends another request
# within this time. The response contains `Connection: close`, so the client then stops using the connection.
LAST_REQUESTS_SECONDS = 0.5
# Maximum time, in seconds, that a worker waits for TLS handshakes in progress when it shuts down.
HANDSHAKE_SECONDS = 5
# The part of gunicorn's `graceful_timeout`, in seconds, that is reserved for the lifespan shutdown.
LIFESPAN_SECONDS = 5
# How long, in seconds, a worker waits before it logs a problem: a warning if the worker has reached `max_requests` but
# no replacement has started, or an error if the master has sent no heartbeat.
WARN_SECONDS = 15.0


class GracefulServer(Server):
    """The server that runs in one worker. On shutdown, it first stops accepting connections, then closes the open ones.

    Args:
        config: Uvicorn's configuration.
        worker: The worker's sequence number, which gunicorn calls `age`.
        phase: One byte of shared memory that tells the master which phase the worker is in.
        notify: Sends a heartbeat to the master.
        grace_seconds: How long, in seconds, requests in progress may take to finish during the shutdown.
    """

    def __init__(
        self, config: Config, *, worker: int, phase: mmap, notify: Callable[[], None], grace_seconds: float
    ) -> None:
        super().__init__(config)
        self._worker = worker
        self._phase = phase
        self._notify = notify
        self._grace_seconds = grace_seconds
        self._warn_at = math.inf
        self._starts = 0
        self._acceptor: Acceptor

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  Uvicorn's signature
        """Start the shutdown.

        Uvicorn's own handler would cause the signal to be raised again after the shutdown. That would kill the process
        before `worker_exit` and the `atexit` functions are called.
        """
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the application's lifespan startup, then start accepting connections on the sockets."""
        await super().startup([])
        self._acceptor = Acceptor(
            sockets or [],
            self._create_protocol,
            tls=self.config.ssl,
            worker=self._worker,
            connections=self.server_state.connections,
        )
        self._acceptor.start()
        self._phase[0] = Phase.ACCEPTING
        starts[0] += 1

    def _create_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as Uvicorn calls it
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def on_tick(self, counter: int) -> bool:
        """Publish the connection count and return whether to shut down. Uvicorn calls this ten times per second."""
        self._acceptor.publish_count()
        self._check_master()
        self._warn_without_successor()
        should_exit = await super().on_tick(counter)
        if should_exit and not self.should_exit and master_heartbeat[0]:  # `max_requests` is reached
            self._request_successor()
            return False
        return should_exit

    def _request_successor(self) -> None:
        """Ask the master for a replacement. The master stops this worker once the replacement accepts connections."""
        self.limit_max_requests = None
        self._phase[0] = Phase.AT_MAX_REQUESTS
        self._warn_at = time.monotonic() + WARN_SECONDS
        with contextlib.suppress(OSError):  # the master has died
            os.kill(os.getppid(), signal.SIGCHLD)  # makes the master check its workers immediately

    def _warn_without_successor(self) -> None:
        """Log a warning once if this worker needs a replacement, but no worker has started in the last WARN_SECONDS."""
        if starts[0] != self._starts:
            self._starts = starts[0]
            self._warn_at = max(self._warn_at, time.monotonic() + WARN_SECONDS)
        if time.monotonic() > self._warn_at:
            self._warn_at = math.inf
            log.warning("This worker has reached max_requests, but keeps serving: no successor has started")

    def _check_master(self) -> None:
        """If the master is not responding, log an error, unless a worker has already logged it."""
        seconds_without_heartbeat = time.monotonic() - master_heartbeat[0] if master_heartbeat[0] else 0.0
        if seconds_without_heartbeat < WARN_SECONDS:
            heartbeat_loss_logged[0] = 0
        elif not heartbeat_loss_logged[0]:
            heartbeat_loss_logged[0] = 1
            log.error("The master process has not responded for %d s: no worker is replaced", seconds_without_heartbeat)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, let requests finish within the grace period, then run the lifespan shutdown."""
        heartbeat = asyncio.create_task(self._send_heartbeat())
        deadline = asyncio.get_running_loop().time() + self._grace_seconds
        self._phase[0] = Phase.STOPPING
        self._close_after_responses()
        if is_draining():
            # Accept every connection in the backlog, however busy this worker is. There may be no other worker left.
            await asyncio.sleep(LAST_REQUESTS_SECONDS)
            self._acceptor.accept_backlog()
        # This closes the sockets only in this worker. Unless the whole server is stopping, the other workers keep
        # accepting connections on them.
        self._acceptor.stop()
        remaining = deadline - asyncio.get_running_loop().time() - LAST_REQUESTS_SECONDS
        await self._acceptor.wait_for_handshakes(min(HANDSHAKE_SECONDS, remaining))
        await self._wait_for_last_requests()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._finish_requests(deadline)
        await super().shutdown(sockets)
        heartbeat.cancel()

    def _close_after_responses(self) -> None:
        """Add `Connection: close` to every response from now on.

        If the headers of a response have already been sent, the client does not know that the server will close the
        connection, and may send another request. The connection is therefore kept open for a while, like an idle one.
        """
        # Create a new list: requests that have already been received use the old list, which must not change.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        for connection in self.server_state.connections:
            if isinstance(connection, LimitedProtocol):
                connection.close_after_response(self._idle_seconds())

    async def _wait_for_last_requests(self) -> None:
        """Keep idle connections open until each client has sent one more request or the idle timeout has expired."""
        start = time.monotonic()
        while self._has_http_connections() and time.monotonic() < start + self._idle_seconds():  # noqa: ASYNC110  no event
            await asyncio.sleep(0.1)

    def _has_http_connections(self) -> bool:
        return any(isinstance(connection, LimitedProtocol) for connection in self.server_state.connections)

    def _idle_seconds(self) -> float:
        """Return how many seconds a connection may stay idle during the shutdown."""
        # If the whole server is stopping, keep idle connections open only briefly. Load balancers have already had
        # `drain_seconds` to stop sending requests, and no worker accepts new connections.
        if is_stopping():
            return LAST_REQUESTS_SECONDS
        # Wait for new requests for at most half of the grace period. The other half is for finishing the last requests.
        return max(LAST_REQUESTS_SECONDS, min(self.config.timeout_keep_alive, self._grace_seconds / 2))

    async def _finish_requests(self, deadline: float) -> None:
        """Wait for running requests until the deadline. Then cancel the rest, so that the application can send a 503.

        Uvicorn would also cancel the requests, but then shut down the lifespan without waiting for their responses.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110  no event
                    await asyncio.sleep(0.1)
        for connection in list(self.server_state.connections):
            connection.shutdown()  # a second call also closes connections that wait for a last request, and WebSockets
        if tasks := list(self.server_state.tasks):
            log.warning(
                "%d requests exceed the grace period of %d s and are cancelled", len(tasks), self._grace_seconds
            )
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=LAST_REQUESTS_SECONDS)

    async def _send_heartbeat(self) -> None:
        """Send heartbeats for the maximum duration of a shutdown. If the worker takes longer, the master kills it."""
        for _ in range(round(self._grace_seconds + LIFESPAN_SECONDS)):
            self._notify()
            await asyncio.sleep(1)
