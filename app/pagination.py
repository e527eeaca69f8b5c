"""Cursor pagination by id. Reading the last page takes no longer than reading the first."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import Query, Request
from pydantic import BeforeValidator, WithJsonSchema

from app.schemas import MAX_ID


def encode_cursor(last_id: int) -> str:
    """Return an opaque cursor for the page that starts after the given id."""
    return urlsafe_b64encode(str(last_id).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """Return the id that the cursor contains.

    Raises:
        ValueError: The cursor was not created by `encode_cursor`.
    """
    try:
        last_id = int(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        last_id = 0
    if not 0 < last_id <= MAX_ID or encode_cursor(last_id) != cursor:
        raise ValueError("Not a valid cursor")
    return last_id


def url_path(request: Request) -> str:
    """Return the path of the request as clients see it, including the prefix that a proxy strips."""
    return quote(request.scope["path"].removesuffix("\n"))  # routes also match a path with a trailing line feed


def next_page_link(request: Request, cursor: str) -> str:
    """Return the value of a `Link` header that points to the next page, given the cursor of that page."""
    query = urlencode({**request.query_params, "cursor": cursor})
    return f'<{url_path(request)}?{query}>; rel="next"'


Limit = Annotated[int, Query(ge=1, le=100, description="Maximum number of items on the page")]
Cursor = Annotated[
    Annotated[
        int, BeforeValidator(decode_cursor), WithJsonSchema({"type": "string", "format": "cursor", "maxLength": 32})
    ]
    | None,
    Query(description="The `next_cursor` of the previous page"),
]
