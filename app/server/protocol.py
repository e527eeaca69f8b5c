"""HTTP as Uvicorn speaks it, with an end to what a client may send and how long it may take.

By itself Uvicorn keeps as much of a head as is sent, and as many requests as are sent at once; waits for a request
without end; and takes what stands behind a chunked body for headers. What it cannot read it answers in its own words.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterable
from http import HTTPStatus
from typing import ClassVar, NamedTuple
from uuid import uuid4

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

log = logging.getLogger("app.server")

# Request line and headers together, bytes; Node.js allows as much.
MAX_HEAD_SIZE = 16 * 1024
# Requests that may be sent without waiting for the answers to those before; no browser sends any.
MAX_PIPELINED = 32
# How long a request may take to arrive: so many seconds, and one more for each so many bytes of it.
REQUEST_SECONDS = 20.0
BYTES_PER_SECOND = 500
# How long a client that reads nothing of its answer keeps its connection.
UNREAD_SECONDS = 30
# A connection that is closed before all was read is reset, and the answer with it may be lost.
LINGER_SECONDS = 1.0

# linux/tcp.h; Python knows it on Linux alone.
TCP_USER_TIMEOUT = 18

_BODY = {b"content-length", b"transfer-encoding"}


class Refusal(NamedTuple):
    """How a request is answered that the application does not hear of: in the form of the application's errors."""

    status: HTTPStatus
    type: str
    error: str

    def response(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The whole answer, with more headers."""
        body = json.dumps({"error": self.error, "type": self.type}).encode()
        own = {b"content-type": b"application/json", b"content-length": b"%d" % len(body), b"connection": b"close"}
        lines = (name + b": " + value + b"\r\n" for name, value in (dict(headers) | own).items())
        return b"".join([STATUS_LINE[self.status], *lines, b"\r\n", body])


MALFORMED = Refusal(HTTPStatus.BAD_REQUEST, "malformed_request", "Not a valid HTTP request")
TOO_SLOW = Refusal(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "The request took too long to arrive")
TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "The request line and headers are too large"
)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A request that breaks a limit is answered, where that is still possible, and is the last.

    `headers_of_refusals` is to be set once, to what the application gives to its own answers and cannot give to these.
    """

    headers_of_refusals: ClassVar[list[tuple[bytes, bytes]]] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as Uvicorn has it
        super().connection_made(transport)
        self.in_head = self.is_incomplete = True  # nothing has come yet, but something should
        self.is_refused = False
        self.running: RequestResponseCycle | None = None
        self.fault = MALFORMED
        self.size = self.unparsed = 0
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        if self.running:  # Uvicorn tells the request that came last, which may not have begun
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self.is_refused:
            return
        began = not self.is_incomplete
        if began:  # whatever comes is the beginning of a request, even a blank line
            self.in_head = self.is_incomplete = True
            self.size = self.unparsed = 0
        self.size += len(data)
        self.unparsed += len(data)
        super().data_received(data)
        self._watch(began=began)

    def _watch(self, *, began: bool) -> None:
        """Lets the clock run as long as a request is incomplete."""
        if self.is_refused:
            return
        if not self.is_incomplete:
            self.timer.cancel()
        elif self.unparsed > MAX_HEAD_SIZE:  # a head without end, or what may stand behind a chunked body
            self._refuse(TOO_LARGE)
        elif began:
            self._start_clock()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head = self.is_incomplete = True
        self.unparsed = 0  # of what came in the same read, it is not known how much belongs to this request

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # else it is a trailer, which no proxy in front has judged as it does headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.size > MAX_HEAD_SIZE and self._head_size() > MAX_HEAD_SIZE:
            self.fault = TOO_LARGE
            raise ValueError  # which the parser takes for a fault of the request
        if len(self.pipeline) == MAX_PIPELINED:
            raise ValueError
        # The parser stops at a head that asks for another protocol, and would take a body for the next request.
        may_upgrade = self.parser.should_upgrade()
        if may_upgrade and any(name in _BODY and value != b"0" for name, value in self.headers):
            raise ValueError
        super().on_headers_complete()
        self.in_head = False
        if may_upgrade:
            self.cycle.keep_alive = False

    def _unsupported_upgrade_warning(self) -> None:
        """Uvicorn would log advice on what to install, whenever a client likes."""

    def _head_size(self) -> int:
        # A colon, a blank and the end of the line make four bytes more of each.
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self.unparsed = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.is_incomplete = False

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  Uvicorn's own words
        self._refuse(self.fault)

    def _start_clock(self) -> None:
        self.started_at = self.loop.time()
        self.timer = self.loop.call_later(REQUEST_SECONDS, self._check_clock)

    def _check_clock(self) -> None:
        if self.flow.read_paused:  # it is not the client who is slow
            self._start_clock()
            return
        left = self.started_at + REQUEST_SECONDS + self.size / BYTES_PER_SECOND - self.loop.time()
        if left > 0:
            self.timer = self.loop.call_later(left, self._check_clock)
        else:
            self._refuse(TOO_SLOW)

    def _refuse(self, refusal: Refusal) -> None:
        self.is_refused = True
        self.timer.cancel()
        if self._waits_for_others():
            # They are answered; the answer to this one would be taken for theirs.
            if not self.in_head:
                self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else self.running
            last.keep_alive = False  # type: ignore[union-attr]  # one is running, or nobody would wait
            return
        if self._can_answer():
            request_id = uuid4().hex
            client = self.client[0] if self.client else None
            extra = {"request_id": request_id, "status": refusal.status, "client": client}
            log.info("request refused", extra=extra)
            headers = [*self.server_state.default_headers, *self.headers_of_refusals]
            self.transport.write(refusal.response([*headers, (b"x-request-id", request_id.encode())]))
            if self.transport.can_write_eof():  # not under TLS
                self.transport.write_eof()
        if not self.in_head:  # the application, which waits for the rest of the body, need not
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _waits_for_others(self) -> bool:
        """Whether requests that came before the one at fault are not answered yet."""
        if self.in_head:
            return self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline)

    def _can_answer(self) -> bool:
        """Whether the request has begun, and its answer has not."""
        return self.scope is not None if self.in_head else not self.cycle.response_started


def leave_those_who_do_not_read(listeners: Iterable[socket.socket]) -> None:
    """Ends each connection on which a client takes nothing of what is sent to it; the system watches that itself."""
    for listener in listeners:
        # Elsewhere than on Linux, or on a Unix socket, there is no such option.
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
