"""Responses to requests that the server rejects before they reach the application."""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import NamedTuple


class Refusal(NamedTuple):
    """The reason a request was rejected.

    Attributes:
        status: The HTTP status code of the response.
        type: A stable identifier, for example `malformed_request`.
        message: A human-readable sentence without a final period.
    """

    status: HTTPStatus
    type: str
    message: str


class RefusalResponse(NamedTuple):
    """The headers and the body of the response to a rejected request.

    The server adds `Date`, `X-Request-ID`, `Content-Length` and `Connection: close`.
    """

    headers: Iterable[tuple[bytes, bytes]]
    body: bytes


RenderRefusal = Callable[[Refusal], RefusalResponse]

MALFORMED = Refusal(HTTPStatus.BAD_REQUEST, "malformed_request", "Invalid HTTP request received")  # Uvicorn's wording
TOO_SLOW = Refusal(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "The request took too long to arrive")
HEAD_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "The request line and headers are too large"
)


def plain_text(refusal: Refusal) -> RefusalResponse:
    """Render the response to a rejected request as plain text, like Uvicorn's own error responses."""
    return RefusalResponse([(b"content-type", b"text/plain; charset=utf-8")], f"{refusal.message}.".encode())


def serialize(status: HTTPStatus, headers: Iterable[tuple[bytes, bytes]], response: RefusalResponse) -> bytes:
    """Return the bytes of a response with `Connection: close`.

    Args:
        status: The HTTP status code.
        headers: The server's default headers, for example `Date`. A header in `response` overrides a default header
            with the same name.
        response: The rendered refusal.
    """
    framing = {b"content-length": b"%d" % len(response.body), b"connection": b"close"}
    lines = [b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode())]
    lines += [b"%s: %s\r\n" % header for header in (dict(headers) | dict(response.headers) | framing).items()]
    return b"".join([*lines, b"\r\n", response.body])
