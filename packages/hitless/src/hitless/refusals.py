"""Responses to requests that the server rejects before they reach the application."""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import NamedTuple


class Refusal(NamedTuple):
    """Why a request was rejected.

    Attributes:
        status: The status of the response.
        type: A stable identifier, such as `malformed_request`.
        message: One sentence for a person.
    """

    status: HTTPStatus
    type: str
    message: str


class RefusalResponse(NamedTuple):
    """The headers and the body of the response to a rejected request.

    The server adds `Content-Length`, `Connection: close` and `Date` itself.
    """

    headers: Iterable[tuple[bytes, bytes]]
    body: bytes


RenderRefusal = Callable[[Refusal], RefusalResponse]

MALFORMED = Refusal(HTTPStatus.BAD_REQUEST, "malformed_request", "Not a valid HTTP request")
TOO_SLOW = Refusal(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "The request took too long to arrive")
HEAD_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "The request line and headers are too large"
)


def plain_text(refusal: Refusal) -> RefusalResponse:
    """Render a refusal as plain text, as Uvicorn does."""
    return RefusalResponse([(b"content-type", b"text/plain; charset=utf-8")], refusal.message.encode())
