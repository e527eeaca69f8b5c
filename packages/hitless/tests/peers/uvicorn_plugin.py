"""A pytest plugin that runs Uvicorn's test suite for httptools on hitless's protocol."""

import pytest
import uvicorn.protocols.http.httptools_impl
from hitless.protocol import LimitedProtocol


# Uvicorn's tests recognize the httptools protocol by this class name.
class HttpToolsProtocol(LimitedProtocol):
    """hitless's protocol, with the class name of Uvicorn's httptools protocol."""


def pytest_configure() -> None:
    uvicorn.protocols.http.httptools_impl.HttpToolsProtocol = HttpToolsProtocol  # type: ignore[misc]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # hitless reads from a transport's file descriptor. The mock transport in Uvicorn's tests has none.
    for module in ("limits", "protocol"):
        pytest.MonkeyPatch().setattr(f"hitless.{module}.has_unread_bytes", lambda _: False)
    # All asyncio transports have this method, but the mock transport does not.
    for item in items:
        item.getparent(pytest.Module).obj.MockTransport.can_write_eof = lambda _: False  # type: ignore[union-attr]
