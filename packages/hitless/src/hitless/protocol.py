"""Uvicorn's HTTP/1.1 protocol with limits on the size, number and duration of requests.

On its own, Uvicorn buffers request heads of any size and any number of pipelined requests. It waits forever for a
request to arrive, and treats trailers as headers.

In hitless, only the callbacks of the HTTP parser, httptools, depend on the parser. INTERNALS.md describes how to
support zttp, Uvicorn's newest protocol.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4
from weakref import WeakMethod

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from hitless.limits import Deadline, Limits
from hitless.refusals import HEAD_TOO_LARGE, MALFORMED, TOO_SLOW, Refusal, RenderRefusal, plain_text, serialize
from hitless.sockets import has_unread_bytes

try:
    from hitless.websocket import LimitedWebSocketProtocol, is_valid_handshake
except ImportError:  # the extra `websockets` is not installed
    HAS_WEBSOCKETS = False
else:
    HAS_WEBSOCKETS = True

log = logging.getLogger("hitless")
# Drop Uvicorn's log line about a malformed request. The `hitless` logger logs the request instead, with the client's
# address and a request id.
logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != "Invalid HTTP request received.")

# Maximum time, in seconds, to discard received data before a connection is closed. The server does this after it
# rejects a request, or if it responds with `Connection: close` before the whole body has arrived. If the connection
# were closed with unread data in the receive buffer, TCP would reset it, and the client might never see the response.
LINGER_SECONDS = 1.0
# Seconds by which the keep-alive timeout is extended if the next request is in the receive buffer but not read yet.
RECHECK_SECONDS = 1.0
# Maximum number of body bytes to buffer for a pipelined request. Uvicorn has no such limit. Each time the application
# calls `receive` for an earlier request, for example to check for a disconnect, Uvicorn resumes reading from the
# connection, so the buffer can keep growing.
PIPELINED_BODY = 2**20

Application = Callable[..., Awaitable[None]]
Message = dict[str, Any]

_BODY_HEADERS = {b"content-length", b"transfer-encoding"}


def log_late_exceptions(app: Application) -> Application:
    """Wrap an application so that exceptions raised after the response is complete are only logged.

    They come from background tasks or from the code after `yield` in dependencies, for example. Starlette also
    re-raises an unhandled exception after sending the 500 response. Without this wrapper, Uvicorn would log the
    exception and close the connection, and a request that the client has just sent would be lost.
    """

    async def call(scope: object, receive: object, send: Callable[[Message], Awaitable[None]]) -> None:
        is_complete = False

        async def track_response(message: Message) -> None:
            nonlocal is_complete
            await send(message)
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await app(scope, receive, track_response)
        except Exception:  # the application may raise anything
            if not is_complete:
                raise
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")

    return call


class ResponseTransport:
    """The part of a transport that a response uses.

    `close` asks the protocol to close the connection, because the protocol may first have to discard the rest of the
    request body. The reference to the protocol is weak, so that a closed connection is not part of a reference cycle.
    """

    def __init__(self, transport: asyncio.Transport, close: WeakMethod[Callable[[], None]]) -> None:
        self.write, self.is_closing = transport.write, transport.is_closing
        self._close = close

    def close(self) -> None:
        if close := self._close():  # otherwise the connection is closed already
            close()


class LimitedProtocol(HttpToolsProtocol):
    """Handle one HTTP connection.

    A request that exceeds a limit is the last one on its connection. It is rejected with an error response, unless its
    own response has already begun or an earlier request is still unanswered.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits = Limits(),  # noqa: B008  immutable
        render_refusal: RenderRefusal = plain_text,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.app = log_late_exceptions(self.app)
        self.limits = limits
        self.render_refusal = render_refusal
        if HAS_WEBSOCKETS:
            self.ws_protocol_class = partial(LimitedWebSocketProtocol, limits=limits)  # type: ignore[assignment]  # Uvicorn only calls it
        self.is_handshake = False
        self.in_head = self.is_incomplete = True  # the first request has not arrived yet
        self.is_discarding = self.awaits_last_request = False
        self.running: RequestResponseCycle | None = None
        self.reason = MALFORMED
        self.unparsed = 0

    # Connection ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in Uvicorn
        super().connection_made(transport)
        self.response_transport = ResponseTransport(transport, WeakMethod(self._end))
        self.deadline = Deadline(self.limits, transport, self.flow)
        self.deadline.start(self._refuse_slow_request)

    def connection_lost(self, exc: Exception | None) -> None:
        self.deadline.cancel()
        if self.running:  # Uvicorn notifies only the latest request, which may be pipelined and not running yet
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless its next request has arrived."""
        if has_unread_bytes(self.transport):
            self.timeout_keep_alive_task = self.loop.call_later(RECHECK_SECONDS, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def close_after_response(self, idle_seconds: float) -> None:
        """Add `Connection: close` to the response to the latest request.

        If the headers of that response have already been sent, the client may send one more request. Keep the
        connection open for that request, for at most `idle_seconds` after the response.
        """
        if self.cycle and not self.cycle.response_started:
            self.cycle.keep_alive = False
        elif self.cycle and not self.cycle.response_complete:
            self.awaits_last_request = True
            self.timeout_keep_alive = idle_seconds  # type: ignore[assignment]  # Uvicorn only passes it to the loop

    def shutdown(self) -> None:
        """Close the connection if it is idle. Otherwise, close it after the response to the current request.

        If `close_after_response` keeps the connection open for one more request, the first call does not close
        it. It is then closed after that request, when the idle timeout expires, or by a second call.
        """
        if self.awaits_last_request:
            self.awaits_last_request = False
            return
        has_begun = self.is_incomplete and self.deadline.received
        is_uploading = self.is_incomplete and not self.in_head and not self.cycle.response_complete
        if is_uploading or (not has_begun and not has_unread_bytes(self.transport)):
            super().shutdown()

    def close_if_unused(self) -> None:
        """Close the connection if the client has never sent anything on it."""
        if not self.deadline.received and not has_unread_bytes(self.transport):
            self.transport.close()

    def on_response_complete(self) -> None:
        # Free the part of the request body that the application has not read. Otherwise, it would stay in memory until
        # the next request.
        self.running.body.clear()  # type: ignore[union-attr]  # a request has been running until now
        super().on_response_complete()

    def _end(self) -> None:
        """Close the connection after a response. If the client is still sending the body, discard the rest first."""
        has_rest = self.is_incomplete and not self.in_head and self.cycle.response_complete
        if has_rest or self.is_discarding:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Stop sending, discard received data for LINGER_SECONDS, then close the connection."""
        self.is_discarding = True
        self.deadline.cancel()
        if self.transport.can_write_eof():  # not possible with TLS
            with suppress(OSError):  # the client has closed the connection
                self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Callable[..., Awaitable[None]]) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self.is_discarding:
            return
        is_new = not self.is_incomplete
        if is_new:  # any data after a complete request, even a blank line, starts the next request
            self.in_head = self.is_incomplete = True
            self.deadline.received = self.unparsed = 0
        self.deadline.extend(len(data))
        self.unparsed += len(data)
        super().data_received(data)
        self._check_limits(is_new=is_new)

    def _check_limits(self, *, is_new: bool) -> None:
        """Start the timer when a request begins, stop it when the request is complete, and reject oversized heads."""
        if self.is_discarding:
            return
        if not self.is_incomplete:
            self.deadline.cancel()
            self._keep_alive_after_late_body()
        elif self.unparsed > self.limits.head_size:  # an endless head, or endless data after a chunked body
            self._refuse(HEAD_TOO_LARGE)
        elif is_new:
            self.deadline.start(self._refuse_slow_request)

    def _keep_alive_after_late_body(self) -> None:
        """Restart the keep-alive timeout, which Uvicorn cancels if request body data arrives after the response."""
        is_idle = not self.is_handshake and self.cycle.response_complete and not self.transport.is_closing()
        if is_idle and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # Callbacks of the parser -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head = self.is_incomplete = True
        self.unparsed = 0  # start at 0, because the parser does not report where the request starts in the data

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:  # drop trailers, because proxies check only headers
            return
        if len(self.headers) == self.limits.header_lines:
            self.reason = HEAD_TOO_LARGE
            raise ValueError  # the parser reports this as a malformed request
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.deadline.received > self.limits.head_size and self._head_size() > self.limits.head_size:
            self.reason = HEAD_TOO_LARGE
            raise ValueError  # the parser reports this as a malformed request
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() != "1.0"):  # RFC 9112, section 3.2
            raise ValueError
        if len(self.pipeline) == self.limits.pipelined_requests:
            raise ValueError
        # Reject a request that has both an `Upgrade` header and a body. The parser stops after the headers of such a
        # request, so the body would be treated as the next request.
        has_upgrade = self.parser.should_upgrade()
        if has_upgrade and any(name in _BODY_HEADERS and value != b"0" for name, value in self.headers):
            raise ValueError
        self.is_handshake = has_upgrade and self._is_valid_handshake()
        # Reject a handshake while an earlier response is incomplete. Otherwise, the two responses would be interleaved.
        if self.is_handshake and self.cycle and not self.cycle.response_complete:
            raise ValueError
        super().on_headers_complete()
        self.in_head = self.awaits_last_request = False
        if not self.is_handshake:
            self.cycle.transport = self.response_transport  # type: ignore[assignment]  # the part that it uses
        if has_upgrade and not self._should_upgrade():
            self.cycle.keep_alive = False

    def _is_valid_handshake(self) -> bool:
        return HAS_WEBSOCKETS and is_valid_handshake(self.parser.get_method(), self.url, self.headers)

    def _should_upgrade(self) -> bool:
        """Return whether the request opens a WebSocket. Ignore other upgrades, as RFC 9110 (section 7.8) allows."""
        return self.is_handshake

    def on_body(self, body: bytes) -> None:
        if self.pipeline and len(self.cycle.body) > PIPELINED_BODY:
            raise ValueError
        super().on_body(body)
        self.unparsed = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.is_incomplete = False

    def _head_size(self) -> int:
        # Besides name and value, each header takes four bytes: a colon, a space and the two bytes of the line ending.
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _unsupported_upgrade_warning(self) -> None:
        """Suppress Uvicorn's warnings about unsupported upgrades, because clients could use them to flood the log."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  Uvicorn's text is not used
        self._refuse(self.reason)

    # Refusals --------------------------------------------------------------------------------------------------------

    def _refuse_slow_request(self) -> None:
        if self.deadline.received:
            self._refuse(TOO_SLOW)
        else:  # nothing to respond to; do not linger, because that would discard a request that arrives now
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        self.is_discarding = True
        self.deadline.cancel()
        if self._follows_unanswered_requests():
            # Do not send an error response, because the client would mistake it for the response to an earlier request.
            # Instead, close the connection when all earlier requests have been answered.
            if not self.in_head:
                self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else self.running
            last.keep_alive = False  # type: ignore[union-attr]  # not None, because a request is unanswered
            return
        if self._can_respond():
            self._respond(refusal)
        if not self.in_head:  # do not let the application wait for the rest of the body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger()

    def _follows_unanswered_requests(self) -> bool:
        if self.in_head:
            return self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline)

    def _can_respond(self) -> bool:
        """Return whether an error response can still be sent: the request has started, but no response to it has."""
        return self.scope is not None if self.in_head else not self.cycle.response_started

    def _respond(self, refusal: Refusal) -> None:
        request_id = uuid4().hex
        client = self.client[0] if self.client else None
        extra = {"request_id": request_id, "status": refusal.status, "client": client}
        log.info("request rejected", extra=extra)
        headers = [*self.server_state.default_headers, (b"x-request-id", request_id.encode())]
        self.transport.write(serialize(refusal.status, headers, self.render_refusal(refusal)))
