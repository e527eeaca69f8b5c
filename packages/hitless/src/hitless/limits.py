"""Connection limits that do not depend on the HTTP parser."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from uvicorn.protocols.http.flow_control import FlowControl

from hitless.sockets import has_unread_bytes

# The value from linux/tcp.h. Python's `socket` module defines this constant only on Linux.
TCP_USER_TIMEOUT = 18


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on how much data a client may send, and how long it may take.

    Attributes:
        head_size: Maximum size of the request line and headers together, in bytes. Node.js has the same default.
        header_lines: Maximum number of headers in a request. In memory, a short header takes up to 30 times its size.
            gunicorn's `limit_request_fields` has the same default.
        pipelined_requests: Maximum number of requests that may wait on a connection while an earlier request is
            being answered. Browsers do not pipeline requests.
        request_seconds: Initial time limit for receiving a request, in seconds. Each received byte extends the limit by
            1 / `bytes_per_second` seconds. The remaining time never exceeds `request_seconds`, so a stalled upload is
            rejected after at most this time.
        bytes_per_second: Minimum upload rate after the first `request_seconds`.
        unread_seconds: Seconds after which a connection is closed if its client stops reading the response (Linux
            only).
        websocket_message_size: Maximum size of a WebSocket message, in bytes. A larger message closes the connection.
        websocket_queue: Number of messages that may wait for the application before the server stops reading. The
            queue may exceed this number, because data is parsed 1 KiB at a time.
        websocket_idle_seconds: Seconds after which a WebSocket connection is closed if its client does not answer a
            ping. The ping is sent after half of this time.
    """

    head_size: int = 16 * 1024
    header_lines: int = 100
    pipelined_requests: int = 32
    request_seconds: float = 20.0
    bytes_per_second: int = 500
    unread_seconds: float = 30.0
    websocket_message_size: int = 64 * 1024
    websocket_queue: int = 32
    websocket_idle_seconds: float = 40.0


class Deadline:
    """A time limit for receiving the current request on a connection. It is extended as bytes arrive.

    Attributes:
        received: The number of bytes of the request received so far.
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
        """Start the timer. It calls `on_timeout` once if the request does not arrive in time."""
        # Pass the function to the timer instead of storing it in `self`. A stored function would make each closed
        # connection part of a reference cycle, which only the garbage collector can free.
        self._at = self._loop.time() + self._limits.request_seconds
        self._timer = self._loop.call_later(self._limits.request_seconds, self._check, on_timeout)

    def extend(self, size: int) -> None:
        """Count received bytes, and extend the deadline accordingly."""
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
    """Make the kernel close connections whose clients stop reading the response for the given number of seconds.

    Connections inherit the socket option TCP_USER_TIMEOUT from the listener that accepts them.
    """
    for listener in listeners:
        with contextlib.suppress(OSError):  # only Linux has this option, and only for TCP
            listener.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, round(seconds * 1000))
