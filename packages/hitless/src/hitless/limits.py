"""The limits of one connection, as far as they are independent of the parser."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from uvicorn.protocols.http.flow_control import FlowControl

from hitless.sockets import has_unread_bytes

# linux/tcp.h; in Python's socket module on Linux only.
TCP_USER_TIMEOUT = 18


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may send, and how long it may take.

    Attributes:
        head_size: Maximum size of the request line and headers together, in bytes. Node.js has the same default.
        pipelined_requests: Maximum number of requests sent before earlier ones are answered. Browsers do not pipeline.
        request_seconds: Time for a request to arrive, in seconds. Each `bytes_per_second` received extend it by one
            second, but never to more than `request_seconds` from now, so that a body without progress is refused.
        bytes_per_second: Minimum upload rate once `request_seconds` are used up.
        unread_seconds: Time after which a connection is closed if its client reads none of the response (Linux only).
        websocket_message_size: Maximum size of a WebSocket message, in bytes. A larger one closes the connection.
        websocket_queue: Number of messages that wait for the application before no more are read. The last 1 KiB that
            was read may contain some more.
        websocket_idle_seconds: Time after which a WebSocket connection is closed whose client answers no ping, in
            seconds. A ping is sent after half of it.
    """

    head_size: int = 16 * 1024
    pipelined_requests: int = 32
    request_seconds: float = 20.0
    bytes_per_second: int = 500
    unread_seconds: float = 30.0
    websocket_message_size: int = 64 * 1024
    websocket_queue: int = 32
    websocket_idle_seconds: float = 40.0


class Deadline:
    """A timer for one request at a time, which is extended as bytes arrive.

    Attributes:
        received: The number of bytes of the request so far.
    """

    def __init__(self, limits: Limits, transport: asyncio.Transport, flow: FlowControl) -> None:
        self.received = 0
        self._limits = limits
        self._transport = transport
        self._flow = flow
        self._loop = asyncio.get_running_loop()
        self._at = 0.0
        self._was_paused = False
        self._timer: asyncio.TimerHandle

    def start(self, on_timeout: Callable[[], None]) -> None:
        """Call a function once if the request does not arrive in time."""
        # Only the timer holds the function, so that a closed connection is freed without the garbage collector.
        self._at = self._loop.time() + self._limits.request_seconds
        self._timer = self._loop.call_later(self._limits.request_seconds, self._check, on_timeout)

    def extend(self, size: int) -> None:
        """Count bytes that have arrived."""
        self.received += size
        latest = self._loop.time() + self._limits.request_seconds
        self._at = min(self._at + size / self._limits.bytes_per_second, latest)

    def cancel(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def _check(self, on_timeout: Callable[[], None]) -> None:
        is_paused = self._flow.read_paused or has_unread_bytes(self._transport)
        if is_paused or self._was_paused:  # the application is slow, not the client
            self._was_paused = is_paused
            self.start(on_timeout)
        elif self._at > self._loop.time():
            self._timer = self._loop.call_at(self._at, self._check, on_timeout)
        else:
            on_timeout()


def enable_send_timeout(listeners: Iterable[socket.socket], seconds: float) -> None:
    """Have the kernel close each accepted connection whose client reads nothing of its response for so long."""
    for listener in listeners:
        with contextlib.suppress(OSError):  # not available on other systems, nor on Unix sockets
            listener.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, round(seconds * 1000))
