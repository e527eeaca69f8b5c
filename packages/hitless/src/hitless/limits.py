"""The limits of one HTTP connection."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may send, and how long it may take.

    Attributes:
        head_size: Maximum size of the request line and headers together, in bytes. Node.js has the same default.
        pipelined_requests: Maximum number of requests sent before earlier ones are answered. Browsers send none.
        request_seconds: Time for a request to arrive, in seconds, plus one second per `bytes_per_second` received.
        bytes_per_second: Minimum upload rate once `request_seconds` are used up.
        unread_seconds: Time after which a connection is closed whose client reads nothing of its response (Linux only).
    """

    head_size: int = 16 * 1024
    pipelined_requests: int = 32
    request_seconds: float = 20.0
    bytes_per_second: int = 500
    unread_seconds: float = 30.0
