"""Uvicorn's WebSocket protocol with limits and a shutdown that loses no message. Requires the extra `websockets`.

On its own, Uvicorn buffers any number of short messages, and answers pings even if the client reads nothing. On
shutdown, it closes connections while the application is still handling their last message.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from uvicorn import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from hitless.limits import Limits

# How long, in seconds, to wait for the client's close frame after sending one. If the connection were closed with
# unread data in the receive buffer, TCP would reset the connection, and the client might never see the close code.
LINGER_SECONDS = 1.0
# Data is parsed in pieces of at most this many bytes. After each piece, the parser stops if the message queue is full.
# The shortest message is six bytes long, so a piece can complete at most 171 messages.
PIECE_SIZE = 1024

log = logging.getLogger("uvicorn.error.websocket")
# Drop records below WARNING. They duplicate the access log and contain headers or query strings, which may include a
# token. Also drop the error about invalid UTF-8 with its traceback, because clients could use it to flood the log.
log.addFilter(
    lambda record: record.levelno >= logging.WARNING and record.msg != "Invalid UTF-8 sequence received from client."
)


def is_valid_handshake(method: bytes, url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request is a WebSocket handshake that the `websockets` library accepts."""
    lines = [b"%s: %s\r\n" % header for header in headers]
    protocol = ServerProtocol(logger=log)
    protocol.receive_data(b"".join([method, b" ", url, b" HTTP/1.1\r\n", *lines, b"\r\n"]))
    requests = [event for event in protocol.events_received() if isinstance(event, Request)]
    return any(protocol.accept(request).status_code == HTTPStatus.SWITCHING_PROTOCOLS for request in requests)


class LimitedWebSocketProtocol(WebSocketsSansIOProtocol):
    """Handle one WebSocket connection.

    On shutdown, the application can still handle and answer its current message and those in the queue. Then the
    connection is closed with code 1012 (Service Restart). All other messages are discarded.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits = Limits(),  # noqa: B008  immutable
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.server_state = server_state
        self.limits = limits
        self.logger = log
        # Do not enable compression. It uses 40 KB of memory per connection, and a message of 100 bytes can expand to
        # 100 KB.
        self.conn = ServerProtocol(max_size=limits.websocket_message_size, logger=log)
        self.ping_interval = self.ping_timeout = limits.websocket_idle_seconds / 2
        # During a shutdown, the default headers include `Connection: close`. The response to a handshake must contain
        # `Connection: Upgrade` instead.
        self.default_headers = [header for header in self.default_headers if header[0] != b"connection"]
        self.unparsed = deque[bytes]()
        self.is_handling = False  # the application has received a message and has not asked for the next one yet
        self.is_draining = False
        self.is_closed_by_server = False

    # Messages --------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.unparsed.extend(data[start : start + PIECE_SIZE] for start in range(0, len(data), PIECE_SIZE))
        self._parse()

    def _parse(self) -> None:
        """Parse received data, and pause reading when the application falls behind."""
        while self.unparsed and self._takes_messages():
            super().data_received(self.unparsed.popleft())
        if self.unparsed and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _takes_messages(self) -> bool:
        if self.close_sent:  # messages will be discarded, but the client's close frame must be read
            return True
        return not self.is_draining and self.queue.qsize() < self.limits.websocket_queue

    def handle_cont(self, event: Frame) -> None:
        if event.data or event.fin:  # skip empty frames, because a message may consist of any number of them
            super().handle_cont(event)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:  # drop the pong: the client does not read, and queued pongs would fill the memory
            self.conn.data_to_send()

    def keepalive_timeout(self) -> None:
        if self.read_paused:  # the application is slow, not the client
            self.pong_timer = self.loop.call_later(self.limits.websocket_idle_seconds, self.keepalive_timeout)
        else:
            super().keepalive_timeout()

    async def receive(self) -> Any:  # noqa: ANN401  an ASGI message
        self.is_handling = False
        self._close_if_idle()
        message = await super().receive()
        self.is_handling = message["type"] == "websocket.receive"
        self._parse()
        return message

    async def send(self, message: Any) -> None:  # noqa: ANN401  an ASGI message
        await self.writable.wait()
        if self.is_closed_by_server:
            raise ClientDisconnected
        await super().send(message)
        # Mark a rejected handshake as complete, so that Uvicorn does not log that the response is missing.
        if self.initial_response and self.close_sent:
            self.handshake_complete = True
        self._close_if_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        # Count the connection towards `max_requests` when it ends, not when it begins. The clients of a replaced worker
        # reconnect immediately. If connections were counted when they begin, the replacement would itself soon reach
        # `max_requests`.
        self.server_state.total_requests += 1
        super().connection_lost(exc)

    # Closing ---------------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Close the connection once the application has handled all queued messages.

        A second call closes the connection without waiting for the application.
        """
        if self.is_draining:
            self._close_with_1012()
        self.is_draining = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self.is_draining and not self.is_handling and self.queue.empty():
            self._close_with_1012()

    def _close_with_1012(self) -> None:
        # Before the handshake is complete, there is nothing to close. This method is called again after the handshake.
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.conn.send_close(CloseCode.SERVICE_RESTART)
            self._close()
            self._parse()

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is None:  # the client sent data before the handshake was complete
            self.transport.abort()
        elif not self.is_closed_by_server:
            self._close()

    def _close(self) -> None:
        """Send the close frame that `conn` has created, then wait up to LINGER_SECONDS for the client's close frame."""
        self.is_closed_by_server = self.close_sent = True
        close = self.conn.close_sent
        assert close  # noqa: S101  for mypy: every caller has set it
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.stop_keepalive()
        self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
