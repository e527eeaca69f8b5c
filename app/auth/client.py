"""A dependency that returns the client's IP address and user agent."""

import re
from typing import Annotated, NamedTuple

from fastapi import Depends, Request

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Client(NamedTuple):
    """The client of a request. Do not trust these values: clients and proxies can set them to arbitrary text."""

    ip_address: str | None
    user_agent: str | None


async def get_client(request: Request) -> Client:
    """Return the IP address and the user agent of the client that sent the request.

    Control characters are removed. Long values are truncated to the length of the database columns.
    """
    return Client(
        _clean(request.client.host if request.client else None, 45), _clean(request.headers.get("user-agent"), 256)
    )


def _clean(text: str | None, length: int) -> str | None:
    return text and _CONTROL_CHARACTERS.sub("", text)[:length]


ClientDep = Annotated[Client, Depends(get_client)]
